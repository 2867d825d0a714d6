"""Limits on connections: their number, and the time for a request header."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class LimitedProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 that closes connections whose request header is late.

    Beyond ``max_connections`` the oldest connection without a request is closed, so that clients
    that hold connections open cannot keep others out.
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
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Receive bytes; a request's body has its own time limit."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
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
    """Return the protocol with a server's limits."""
    limits = {"receive_seconds": receive_seconds, "max_connections": max_connections}
    return type("Protocol", (LimitedProtocol,), limits)
