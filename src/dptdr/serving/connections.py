"""Connection limits: the number of connections, and a timeout for request headers."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class LimitedProtocol(H11Protocol):  # type: ignore[misc]
    """An HTTP/1.1 protocol that times out slow request headers.

    Above ``max_connections``, the oldest idle connection is closed, so that clients that hold
    connections open cannot lock out others.
    """

    receive_seconds: float
    max_connections: int
    connections: set[Any]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Accept a connection."""
        super().connection_made(transport)
        self._born = time.monotonic()
        self._watch()
        if len(self.connections) > self.max_connections:
            idle = [c for c in self.connections if not c.busy]
            min(idle, key=lambda c: c._born, default=self).transport.close()

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Receive data; request bodies have a separate timeout."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.busy:
            self._stop_timer()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.receive_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.busy and not self.transport.is_closing():
            self.transport.close()


def limited_protocol(*, receive_seconds: float, max_connections: int) -> type[LimitedProtocol]:
    """Create a protocol class with the given limits."""
    limits = {"receive_seconds": receive_seconds, "max_connections": max_connections}
    return type("Protocol", (LimitedProtocol,), limits)
