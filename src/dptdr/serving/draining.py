"""A uvicorn server that drains after a stop signal."""

import signal
import threading
from typing import Any

import uvicorn

from dptdr.serving.runtime import Runtime


class DrainingServer(uvicorn.Server):  # type: ignore[misc]
    """Drains, then stops; stops at once if the runtime failed to load."""

    should_exit: bool
    force_exit: bool

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self.runtime = runtime

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle a stop signal; a second one stops at once."""
        del frame
        seconds = self.runtime.settings.drain_seconds
        if not seconds or self.runtime.draining:
            self._stop(sig)
            return
        # Load balancers see 503 from /health and send nobody here any more.
        self.runtime.draining = True
        timer = threading.Timer(seconds, self._stop, args=(sig,))
        timer.daemon = True
        timer.start()

    def _stop(self, sig: int) -> None:
        # Unlike uvicorn's own handler: it would raise the signal again after an orderly end.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop."""
        # A worker that cannot load ends, and its message is what the caller sees.
        if self.runtime.failure is not None:
            return True
        stop: bool = await super().on_tick(counter)
        return stop
