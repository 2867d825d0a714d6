"""Compact in-memory representations of millions of ids."""

import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from dptdr.errors import DataError
from dptdr.io.npy import map_array

_MOST_RECENT = 1 << 18


def stable_hash(text: str) -> int:
    """Return a 64-bit hash that is the same in every process."""
    # Lone surrogates are possible in JSON but cannot be encoded as UTF-8.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stable_hashes(texts: Iterable[str]) -> UInt64[np.ndarray, " texts"]:
    """Apply :func:`stable_hash` to each text."""
    return np.fromiter(map(stable_hash, texts), dtype=np.uint64)


def normalised(text: str) -> str:
    """Normalise a text's case, whitespace and Unicode form (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class RowTable:
    """A lookup table from 64-bit hashes to row numbers, using 16 bytes per row.

    The probability of any hash collision among ten million ids is 3 in a million.
    """

    def __init__(self, hashes: UInt64[np.ndarray, " rows"]) -> None:
        # Stable sort, so that rows with equal hashes stay in order.
        self._rows: Int64[np.ndarray, " rows"] = np.argsort(hashes, kind="stable")
        self._hashes: UInt64[np.ndarray, " rows"] = hashes[self._rows]

    @classmethod
    def build(cls, ids: Iterable[str]) -> "RowTable":
        """Build a table of ids, given in row order."""
        return cls(stable_hashes(ids))

    def rows(self, identifier: str) -> Int64[np.ndarray, " rows"]:
        """Return the rows whose hash matches an id, in ascending order."""
        wanted = np.uint64(stable_hash(identifier))
        start, end = (np.searchsorted(self._hashes, wanted, side=s) for s in ("left", "right"))
        found: Int64[np.ndarray, " rows"] = self._rows[start:end]
        return found

    def first_rows(self, wanted: UInt64[np.ndarray, " ids"]) -> Int64[np.ndarray, " ids"]:
        """Return the first row for each hash, or -1 if there is none."""
        if not len(self._hashes):
            return np.full(len(wanted), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[places] == wanted, self._rows[places], -1)

    def hashes(self) -> UInt64[np.ndarray, " ids"]:
        """Return the distinct hashes, sorted."""
        return np.unique(self._hashes)

    def doubles(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of rows with equal hashes, which are potential duplicates."""
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            yield int(self._rows[place]), int(self._rows[place + 1])


class IdSet:
    """A set of ids stored as 64-bit hashes, 8 bytes each.

    The probability of any hash collision among ten million ids is 3 in a million.
    """

    def __init__(self) -> None:
        self._sorted: Int64[np.ndarray, " ids"] = np.zeros(0, dtype=np.int64)
        self._view = self._sorted.data
        self._recent: set[int] = set()

    def add(self, record_id: str) -> bool:
        """Add an id; return whether it is new."""
        if record_id in self:
            return False
        self._recent.add(hash(record_id))
        if len(self._recent) >= _MOST_RECENT:
            recent = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._view = self._sorted.data
            self._recent = set()
        return True

    def __contains__(self, record_id: object) -> bool:
        """Check whether an id was added."""
        value = hash(record_id)
        if value in self._recent:
            return True
        place = bisect_left(self._view, value)
        return place < len(self._view) and self._view[place] == value


class IdTable:
    """Maps row numbers to ids.

    Ten million ids take more than half a gigabyte as a Python list; here, each takes its bytes plus
    8, and both arrays can be memory-mapped.

    Args:
        blob: Concatenated UTF-8 bytes of the ids.
    """

    def __init__(
        self, blob: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " ends"]
    ) -> None:
        self._blob = blob
        self._offsets = offsets

    @classmethod
    def build(cls, ids: Iterable[str]) -> "IdTable":
        """Build a table of ids, in order."""
        blob = bytearray()
        offsets = [0]
        for value in ids:
            blob += value.encode("utf-8")
            offsets.append(len(blob))
        return cls(np.frombuffer(bytes(blob), dtype=np.uint8), np.array(offsets, dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Write ``ids.npy`` and ``id_offsets.npy`` into a folder."""
        np.save(folder / "ids.npy", self._blob, allow_pickle=False)
        np.save(folder / "id_offsets.npy", self._offsets, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "IdTable":
        """Memory-map the two files written by :meth:`save`.

        Raises:
            DataError: If they are missing, damaged or inconsistent.
        """
        blob = map_array(folder / "ids.npy", dtype=np.uint8)
        offsets = map_array(folder / "id_offsets.npy", dtype=np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(blob):
            raise DataError(
                "ids.npy and id_offsets.npy are inconsistent; recreate them", path=folder
            )
        if (np.diff(offsets) < 0).any():
            raise DataError(
                "expected increasing offsets; recreate the file", path=folder / "id_offsets.npy"
            )
        return cls(blob, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        try:
            return self._blob[start:end].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"expected ids in UTF-8, got {error.object[:40]!r}") from None
