"""Connections: a client must say what it wants within a time, and only so many may wait."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class LimitedProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 that closes connections which send no whole request header in time.

    Beyond ``max_connections`` the oldest connection without a request under way is closed: clients
    that hold connections open cannot keep others out.
    """

    receive_seconds: float
    max_connections: int
    connections: set[Any]

    def connection_made(self, transport: Any) -> None:
        """Take a connection."""
        super().connection_made(transport)
        self._born = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._watch()
        if len(self.connections) > self.max_connections:
            idle = [c for c in self.connections if not c.busy]
            min(idle, key=lambda c: c._born, default=self).transport.close()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that has begun stops the clock, its body has one of its own."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.busy:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.receive_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if not self.busy and not self.transport.is_closing():
            self.transport.close()


def limited_protocol(*, receive_seconds: float, max_connections: int) -> type[LimitedProtocol]:
    """Return the protocol with a server's limits."""
    limits = {"receive_seconds": receive_seconds, "max_connections": max_connections}
    return type("Protocol", (LimitedProtocol,), limits)
