"""Ids in compact form: one blob of UTF-8 and offsets, so that millions cost little memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8


class IdTable:
    """Row number to id, for any number of ids.

    A Python list of 10 million ids costs more than half a gigabyte; this costs their bytes plus 8
    each, and both arrays can be mapped from disk.

    Args:
        blob: The ids' UTF-8 bytes, one after the other.
        offsets: Start of each id in the blob, and the blob's length last.
    """

    def __init__(
        self, blob: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " ends"]
    ) -> None:
        self._blob = blob
        self._offsets = offsets

    @classmethod
    def build(cls, ids: Iterable[str]) -> "IdTable":
        """Collect ids in their order."""
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
        """Map the two files of :meth:`save` into memory."""
        return cls(
            np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / "id_offsets.npy", mmap_mode="r", allow_pickle=False),
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._blob[start:end].tobytes().decode("utf-8")
