"""Random access to the records of files that do not fit in memory: 16 bytes a record are held."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dptdr.errors import DataError
from dptdr.io.intarray import as_numbers, int_array
from dptdr.io.lines import UTF8_MARK, open_bytes


class Spans:
    """A file that is read piece by piece, each piece by its row.

    Args:
        path: The file, not packed.
        starts: Where each piece begins, in bytes.
        ends: Where each piece ends, in bytes.
    """

    def __init__(
        self, path: Path, *, starts: Int64[np.ndarray, " rows"], ends: Int64[np.ndarray, " rows"]
    ) -> None:
        self.path = path
        self._starts = starts
        self._ends = ends
        open_bytes(path).close()  # for its errors
        # A bare descriptor: reads at a place share no position, and it closes with the object.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the file anew in another process, whose descriptors are others."""
        return _opened, (self.path, self._starts, self._ends)

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._starts)

    def read(self, row: int) -> bytes:
        """Return the bytes of one piece. Threads and forked processes may call it at once.

        Args:
            row: Which, from 0.

        Returns:
            The bytes.

        Raises:
            DataError: If the file has become shorter since it was indexed.
        """
        start, end = int(self._starts[row]), int(self._ends[row])
        piece = os.pread(self._descriptor, end - start, start)
        if len(piece) != end - start:
            raise DataError("has changed while it was read; start again", path=self.path)
        return piece

    def line_number(self, row: int) -> int:
        """Return the number, from 1, of the line that a piece begins in; reads the file up to it.

        Args:
            row: Which piece, from 0.

        Returns:
            The line's number.
        """
        left = int(self._starts[row])
        lines = 1
        with open_bytes(self.path) as handle:
            while left > 0 and (chunk := handle.read(min(left, 1 << 20))):
                lines += chunk.count(b"\n")
                left -= len(chunk)
        return lines


def _opened(
    path: Path, starts: Int64[np.ndarray, " rows"], ends: Int64[np.ndarray, " rows"]
) -> Spans:
    return Spans(path, starts=starts, ends=ends)


def line_spans(path: Path) -> Spans:
    """Return the lines of a file that are not blank, for reading by row.

    Args:
        path: A text file, not packed.

    Returns:
        One piece for each line, without line endings.

    Raises:
        DataError: If the file is missing or packed.
    """
    if path.suffix == ".gz":
        raise DataError("is packed and can only be read from the start; unpack it", path=path)
    starts, ends = int_array(), int_array()
    position = 0
    with open_bytes(path) as handle:
        for line in handle:
            kept = line.rstrip(b"\r\n")
            # A byte order mark is part of no record.
            mark = len(UTF8_MARK) if position == 0 and kept.startswith(UTF8_MARK) else 0
            if kept[mark:].strip():
                starts.append(position + mark)
                ends.append(position + len(kept))
            position += len(line)
    return Spans(path, starts=as_numbers(starts), ends=as_numbers(ends))
