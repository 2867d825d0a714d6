"""Exact search over smaller vectors: fewer dimensions, half precision, 8 bits or 1 bit a number."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float32, Int64

from dptdr.errors import VectorsError
from dptdr.search.indexes.exact import TopK, top_k_of_blocks
from dptdr.search.vectors.compression import (
    COMPRESSIONS,
    CompressedVectors,
    Compression,
    compress,
    shorten,
)
from dptdr.search.vectors.folder import VectorFolder

QUANTIZATIONS = COMPRESSIONS[1:]


class Reduction(NamedTuple):
    """Reduction of the searched vectors."""

    dimensions: int | None = None
    """First numbers of each vector that are kept; None for all."""
    quantize: str | None = None
    """Smaller form of each number; None for the stored one."""


FULL = Reduction()


class ShortVectors:
    """The vectors of a folder, cut to their first dimensions, for faiss."""

    def __init__(self, folder: VectorFolder, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self.count = folder.count

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first row and vectors of consecutive blocks."""
        for start, block in self.folder.blocks():
            yield start, shorten(block, self.dim)

    def gather(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors of some rows."""
        short: np.ndarray = shorten(self.folder.gather(rows), self.dim)
        return short


class QuantizedRows:
    """Scores every quantized vector; see :class:`dptdr.search.indexes.rows.RowIndex`."""

    def __init__(self, vectors: CompressedVectors) -> None:
        self.vectors = vectors

    @classmethod
    def build(cls, folder: VectorFolder, reduction: Reduction) -> "QuantizedRows":
        """Compress all vectors of a folder."""
        dim = reduction.dimensions or folder.dim
        form = cast(Compression, reduction.quantize or "float32")
        middle = None
        if form == "binary":
            sums = [
                shorten(block, dim).sum(axis=0, dtype=np.float64) for _, block in folder.blocks()
            ]
            middle = (np.sum(sums, axis=0) / folder.count).astype(np.float32)
        blocks = [
            compress(block, compression=form, dim=dim, middle=middle)
            for _, block in folder.blocks()
        ]
        return cls(CompressedVectors.joined(blocks))

    @classmethod
    def load(cls, path: Path, reduction: Reduction, *, count: int, dim: int) -> "QuantizedRows":
        """Map an index from its file.

        Args:
            dim: Numbers in a vector of the folder.

        Raises:
            VectorsError: If the file is not such an index.
        """
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise VectorsError(f"{path}: cannot be read ({error}); build the index again") from None
        try:
            return cls(
                CompressedVectors.from_stored(
                    stored,
                    compression=cast(Compression, reduction.quantize or "float32"),
                    dim=reduction.dimensions or dim,
                    count=count,
                )
            )
        except VectorsError as error:
            raise VectorsError(f"{path}: {error}; build the index again") from None

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        with path.open("wb") as handle:
            np.save(handle, self.vectors.as_stored(), allow_pickle=False)

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dim"],
        *,
        depth: int,
        allowed: Int64[np.ndarray, " rows"] | None,
    ) -> TopK:
        """Return the best rows by quantized vectors."""
        scores, places = top_k_of_blocks(vectors, self.vectors.blocks(allowed), depth=depth)
        return scores, places if allowed is None else allowed[places]
