"""A uvicorn server that goes on answering for a while after it was told to stop."""

import signal
import threading
from typing import Any

import uvicorn

from dptdr.serving.runtime import Runtime

_RUNTIMES: list[Runtime] = []


def announce(runtime: Runtime) -> None:
    """Tell this process's server which runtime it serves."""
    _RUNTIMES[:] = [runtime]


class DrainingServer(uvicorn.Server):  # type: ignore[misc]
    """Drains first, stops then; and stops at once where the runtime could not be loaded."""

    should_exit: bool
    force_exit: bool

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take a stop signal; a second one stops at once."""
        patient = [runtime for runtime in _RUNTIMES if runtime.settings.drain_seconds > 0]
        if not patient or patient[0].draining:
            self._stop(sig, frame)
            return
        # Balancers see 503 from /health and send nobody here any more.
        patient[0].draining = True
        seconds = patient[0].settings.drain_seconds
        timer = threading.Timer(seconds, self._stop, args=(sig, frame))
        timer.daemon = True
        timer.start()

    def _stop(self, sig: int, frame: Any) -> None:
        del frame
        # uvicorn would raise the signal again behind an orderly end, and the exit code with it.
        again = self.should_exit
        self.force_exit = again and sig == signal.SIGINT
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Say whether to stop."""
        # A worker that cannot load ends, and its message is what the caller sees.
        if any(runtime.failure is not None for runtime in _RUNTIMES):
            return True
        stop: bool = await super().on_tick(counter)
        return stop
