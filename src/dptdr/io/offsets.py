"""Random access to the records of large files, with 16 bytes of memory per record."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dptdr.errors import DataError
from dptdr.io.intarray import as_numbers, int_array
from dptdr.io.lines import READ_FAULTS, UTF8_MARK, open_bytes


class Spans:
    """A file whose records can be read by row number.

    A compressed file is decompressed once, to an anonymous temporary file.
    """

    def __init__(
        self, path: Path, *, starts: Int64[np.ndarray, " rows"], ends: Int64[np.ndarray, " rows"]
    ) -> None:
        self.path = path
        self._starts = starts
        self._ends = ends
        # A raw descriptor: positional reads share no state, and it closes with the object.
        self._descriptor = _descriptor(path)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reopen the file in another process."""
        return _opened, (self.path, self._starts, self._ends)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._starts)

    def read(self, row: int) -> bytes:
        """Read one record (from 0); safe in threads and forked processes.

        Raises:
            DataError: If the file has been truncated since it was indexed.
        """
        start, end = int(self._starts[row]), int(self._ends[row])
        piece = os.pread(self._descriptor, end - start, start)
        if len(piece) != end - start:
            raise DataError("the file changed while being read; start again", path=self.path)
        return piece

    def line_number(self, row: int) -> int:
        """Return the line number, from 1, of a record, by reading the file up to it."""
        left = int(self._starts[row])
        lines = 1
        with open_bytes(self.path) as handle:
            while left > 0 and (chunk := handle.read(min(left, 1 << 20))):
                lines += chunk.count(b"\n")
                left -= len(chunk)
        return lines


def _descriptor(path: Path) -> int:
    with open_bytes(path) as handle:
        if path.suffix != ".gz":
            return os.dup(handle.fileno())
        with tempfile.TemporaryFile() as unpacked:
            try:
                shutil.copyfileobj(handle, unpacked, 1 << 20)
                unpacked.flush()
            except READ_FAULTS as error:
                raise DataError(f"cannot be read: {error}", path=path) from None
            return os.dup(unpacked.fileno())


def _opened(
    path: Path, starts: Int64[np.ndarray, " rows"], ends: Int64[np.ndarray, " rows"]
) -> Spans:
    return Spans(path, starts=starts, ends=ends)


def _whole(handle: Iterable[bytes], *, path: Path) -> Iterator[bytes]:
    try:
        yield from handle
    except READ_FAULTS as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def line_spans(path: Path) -> Spans:
    """Index the non-blank lines of a file by row number.

    Raises:
        DataError: If the file is missing or its gzip data is broken.
    """
    starts, ends = int_array(), int_array()
    position = 0
    with open_bytes(path) as handle:
        for line in _whole(handle, path=path):
            kept = line.rstrip(b"\r\n")
            # Exclude the byte order mark from the first record.
            mark = len(UTF8_MARK) if position == 0 and kept.startswith(UTF8_MARK) else 0
            if kept[mark:].strip():
                starts.append(position + mark)
                ends.append(position + len(kept))
            position += len(line)
    return Spans(path, starts=as_numbers(starts), ends=as_numbers(ends))
