"""Prefetch the batches of the next steps in worker processes."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dptdr.errors import TrainingError
from dptdr.io.processes import DIED
from dptdr.pretraining.document_sampling import Reader, SampledDocument

# Prefetched batches per worker, enough to keep all workers busy.
_BATCHES_PER_PROCESS = 2

_reader: Reader | None = None


class ReadAhead:
    """Yields a run's batches in order, prefetched by worker processes.

    A batch is a function of its step, so that the number of workers affects only speed. Each worker
    needs 48 bytes per document.

    Args:
        reader: The reader; each worker gets a copy without the encoder.
        rows: Returns the documents of a step.
        stream: Random stream for this use of the documents.
        steps: Total number of steps.
        processes: Number of workers.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Callable[[int], Sequence[int]],
        *,
        stream: int,
        steps: int,
        processes: int,
    ) -> None:
        self._rows = rows
        self._stream = stream
        self._steps = steps
        self._room = _BATCHES_PER_PROCESS * processes
        self._waiting: deque[tuple[int, Future[list[SampledDocument]]]] = deque()
        # Do not fork: a forked worker would inherit the device.
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(reader,),
        )

    def read(self, step: int) -> list[SampledDocument]:
        """Return a step's documents while the workers read the next steps.

        Args:
            step: Any step; usually one more than in the last call.

        Raises:
            TrainingError: If a worker was killed.
        """
        while self._waiting and self._waiting[0][0] != step:
            self._waiting.popleft()[1].cancel()
        following = self._waiting[-1][0] + 1 if self._waiting else step
        try:
            while len(self._waiting) < self._room and following < max(self._steps, step + 1):
                rows = list(self._rows(following))
                made = self._pool.submit(_read, rows, following, self._stream)
                self._waiting.append((following, made))
                following += 1
            return self._waiting.popleft()[1].result()
        except BrokenProcessPool:
            raise TrainingError(
                f"step {step + 1}: a prefetch worker died ({DIED}); use fewer readers if memory is "
                "low, and rerun to resume"
            ) from None

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read(rows: Sequence[int], step: int, stream: int) -> list[SampledDocument]:
    assert _reader is not None
    return _reader.read(rows, step=step, stream=stream)
