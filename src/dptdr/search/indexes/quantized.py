"""Exact search over reduced vectors: fewer dimensions, float16, int8 or binary."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float32, Int64

from dptdr.errors import VectorsError
from dptdr.search.exact import TopK, top_k_of_blocks
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
    """How vectors are reduced for search."""

    dimensions: int | None = None
    """Number of leading dimensions to keep; None for all."""
    quantize: str | None = None
    """Quantization (``float16``, ``int8`` or ``binary``); None for the stored dtype."""


FULL = Reduction()


class ShortVectors:
    """The vectors of a folder, truncated to their leading dimensions, for faiss."""

    def __init__(self, folder: VectorFolder, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self.count = folder.count

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the vectors of consecutive blocks."""
        for start, block in self.folder.blocks():
            yield start, shorten(block, self.dim)

    def gather(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors in the given rows."""
        short: np.ndarray = shorten(self.folder.gather(rows), self.dim)
        return short


class QuantizedRows:
    """Exhaustive search of quantized vectors; see :class:`.row_index.RowIndex`."""

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
        return cls(CompressedVectors.concatenate(blocks))

    @classmethod
    def load(cls, path: Path, reduction: Reduction, *, count: int, dim: int) -> "QuantizedRows":
        """Memory-map an index file.

        Args:
            dim: Dimension of the full vectors.

        Raises:
            VectorsError: If the file is not such an index.
        """
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise VectorsError(f"{path}: cannot be read ({error}); rebuild the index") from None
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
            raise VectorsError(f"{path}: {error}; rebuild the index") from None

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
        """Return the best rows according to the quantized vectors."""
        scores, places = top_k_of_blocks(vectors, self.vectors.blocks(allowed), depth=depth)
        return scores, places if allowed is None else allowed[places]
