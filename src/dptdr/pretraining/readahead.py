"""Read the batches of coming steps in other processes."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dptdr.errors import TrainingError
from dptdr.pretraining.documents import Document, Reader

# Batches that are read, or being read, for each process: enough that none waits for the device.
_BATCHES_PER_PROCESS = 2

_reader: Reader | None = None


class ReadAhead:
    """Returns a run's batches in order, read by other processes.

    What a batch holds is a function of its step, so that the number of processes changes nothing
    but the speed. Each process keeps the documents' places: 48 bytes a document.

    Args:
        reader: Reads; a copy of it, without the encoder, goes to each process.
        rows: The documents of a step.
        stream: Which use of the documents it is.
        steps: Steps in all.
        processes: How many processes.
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
        self._waiting: deque[tuple[int, Future[list[Document]]]] = deque()
        # A forked process would take over a device that it must not use.
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(reader,),
        )

    def read(self, step: int) -> list[Document]:
        """Return the documents of a step; the next steps are read meanwhile.

        Args:
            step: The step, one more than in the last call, or any.

        Raises:
            TrainingError: If a reading process was killed.
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
                f"step {step + 1}: a process that reads documents ahead has ended, perhaps for "
                "want of memory; use fewer readers, and run again to continue"
            ) from None

    def close(self) -> None:
        """Stop the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read(rows: Sequence[int], step: int, stream: int) -> list[Document]:
    assert _reader is not None
    return _reader.read(rows, step=step, stream=stream)
