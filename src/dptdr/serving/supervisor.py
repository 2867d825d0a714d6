"""Supervise worker processes."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from dptdr.errors import ServingError

CANNOT_LOAD = 3
"""Exit code of a worker that has reported why it cannot start."""

_EARLY_SECONDS = 5.0
_MAX_EARLY_DEATHS = 5


@dataclass
class _Worker:
    process: SpawnProcess
    reports: Connection
    started: float
    loaded: bool = False
    message: str | None = None

    def read_reports(self) -> None:
        """Read the worker's startup report: it loaded, or an error message."""
        # A pipe for each worker: one that is killed while it reports would keep a queue's lock.
        with contextlib.suppress(EOFError, OSError):
            while self.reports.poll():
                self.message = self.reports.recv()
                self.loaded = self.message is None


class Supervisor:
    """Runs workers on a shared socket and replaces workers that die.

    While any loaded worker serves, a worker that fails to start is merely retried later: a damaged
    file must not stop a server that has it in memory.

    Args:
        target: Function to run in each worker. Takes the arguments and a connection, to which it
            sends ``None`` once loaded, or an error message.
        patience_seconds: Time for workers to exit before they are killed.
        retry_seconds: Pause before a worker that failed to start is retried.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        workers: int,
        patience_seconds: float,
        retry_seconds: float = 5.0,
    ) -> None:
        self.target = target
        self.arguments = arguments
        self.workers = workers
        self.patience_seconds = patience_seconds
        self.retry_seconds = retry_seconds
        self._context = multiprocessing.get_context("spawn")
        self._running: list[_Worker] = []
        self._due: list[float] = []
        self._early = 0
        self._stopping = False

    def run(self) -> None:
        """Run until a stop signal arrives and all workers have exited.

        Raises:
            ServingError: If workers fail to load, or die repeatedly right after starting.
        """
        before = {sig: signal.signal(sig, self._stop) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            for _ in range(self.workers):
                self._start()
            while not self._stopping:
                sentinels = [worker.process.sentinel for worker in self._running]
                multiprocessing.connection.wait(sentinels, timeout=0.2)
                for worker in [w for w in self._running if not w.process.is_alive()]:
                    if not self._stopping:
                        self._replace(worker)
                late = [due for due in self._due if due <= time.monotonic()]
                self._due = [due for due in self._due if due not in late]
                for _ in late if not self._stopping else ():
                    self._start()
        finally:
            self._end()
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self._stopping = True

    def _start(self) -> None:
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=self.target, args=(*self.arguments, writer))
        process.start()
        writer.close()
        self._running.append(_Worker(process, reader, time.monotonic()))

    def _replace(self, worker: _Worker) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        self._running.remove(worker)
        process = worker.process
        early = time.monotonic() - worker.started < _EARLY_SECONDS
        self._early = self._early + 1 if early else 0
        sys.stderr.write(
            f"worker {process.pid} exited with code {process.exitcode}, replacing it\n"
        )
        with contextlib.suppress(OSError, TypeError, ValueError):
            mark_process_dead(process.pid)
        for each in (worker, *self._running):
            each.read_reports()
        worker.reports.close()
        message = worker.message
        if any(other.loaded for other in self._running):
            if message is not None:
                sys.stderr.write(f"worker {process.pid}: {message}\n")
            pause = self.retry_seconds if early or message is not None else 0.0
            self._due.append(time.monotonic() + pause)
            return
        if message is not None:
            raise ServingError(message)
        if self._early >= _MAX_EARLY_DEATHS:
            raise ServingError(
                f"{self._early} workers in a row exited within {_EARLY_SECONDS:g} seconds of "
                "starting; see the log above"
            )
        self._start()

    def _end(self) -> None:
        processes = [worker.process for worker in self._running]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self.patience_seconds
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
