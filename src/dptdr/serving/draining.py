"""A uvicorn server that drains requests after a stop signal."""

import signal
import threading
from typing import Any

import uvicorn

from dptdr.serving.runtime import Runtime


class DrainingServer(uvicorn.Server):  # type: ignore[misc]
    """Drains before stopping; stops immediately if the runtime failed to load."""

    should_exit: bool
    force_exit: bool

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self.runtime = runtime

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Start draining on the first stop signal; stop immediately on the second."""
        del frame
        seconds = self.runtime.settings.drain_seconds
        if not seconds or self.runtime.draining:
            self._stop(sig)
            return
        # Load balancers see 503 from /health and stop routing requests here.
        self.runtime.draining = True
        timer = threading.Timer(seconds, self._stop, args=(sig,))
        timer.daemon = True
        timer.start()

    def _stop(self, sig: int) -> None:
        # Not uvicorn's own handler, which would re-raise the signal after a clean shutdown.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Decide whether to stop."""
        # A worker that failed to load exits, and the caller reports its message.
        if self.runtime.failure is not None:
            return True
        stop: bool = await super().on_tick(counter)
        return stop
