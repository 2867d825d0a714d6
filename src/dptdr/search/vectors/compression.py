"""Smaller vectors, and what they cost: half precision, 8 bits, 1 bit, fewer dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Int

from dptdr.errors import VectorsError
from dptdr.search.indexes.exact import BLOCK_ROWS, top_k_of_blocks

Compression: TypeAlias = Literal["float32", "float16", "int8", "binary"]
COMPRESSIONS: tuple[str, ...] = get_args(Compression)


@dataclass(frozen=True, kw_only=True)
class CompressedVectors:
    """Vectors in a smaller form that can be searched exactly as they are stored.

    Args:
        compression: The form.
        dim: Numbers that are kept of a vector.
        codes: What is stored, one row for each vector.
        scales: For ``int8``, what one step is worth in each vector; else empty.
        middle: For ``binary``, the value of each dimension that divides 0 from 1; else empty.
    """

    compression: Compression
    dim: int
    codes: np.ndarray
    scales: np.ndarray
    middle: np.ndarray

    @property
    def bytes(self) -> int:
        """Bytes of all that is stored."""
        return self.codes.nbytes + self.scales.nbytes + self.middle.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first row and restored vectors of consecutive blocks.

        Yields:
            Row number, and float32 vectors; for ``binary`` each number is 1 or -1.
        """
        for start in range(0, len(self.codes), BLOCK_ROWS):
            codes = self.codes[start : start + BLOCK_ROWS]
            if self.compression == "binary":
                bits = np.unpackbits(codes, axis=1, count=self.dim)
                yield start, bits.astype(np.float32) * 2 - 1
            elif self.compression == "int8":
                scales = self.scales[start : start + BLOCK_ROWS, None]
                yield start, codes.astype(np.float32) * scales
            else:
                yield start, codes

    def search(
        self,
        queries: Float[np.ndarray, "queries full_dim"],
        *,
        depth: int,
        full: Float[np.ndarray, "passages full_dim"] | None = None,
        factor: int = 4,
    ) -> tuple[Float[np.ndarray, "queries depth"], Int[np.ndarray, "queries depth"]]:
        """Return the best rows, where wanted scored again on the full vectors.

        Args:
            queries: Full query vectors; they are not compressed, only cut to ``dim``.
            depth: Hits wanted.
            full: The full vectors, memory-mapped as a rule: the best ``factor * depth`` candidates
                are scored again on them.
            factor: Candidates for each hit.

        Returns:
            Scores and rows, best first.
        """
        cut = _cut(queries, self.dim)
        if full is None:
            return top_k_of_blocks(cut, self.blocks(), depth=depth)
        _, candidates = top_k_of_blocks(cut, self.blocks(), depth=depth * factor)
        scores = np.stack(
            [
                np.asarray(full[rows], dtype=np.float32) @ query
                for query, rows in zip(queries, candidates, strict=True)
            ]
        )
        order = np.lexsort((candidates, -scores), axis=1)[:, :depth]
        best = np.take_along_axis(candidates, order, axis=1)
        return np.take_along_axis(scores, order, axis=1), best


def compress(
    vectors: Float[np.ndarray, "passages full_dim"],
    *,
    compression: Compression = "float32",
    dim: int | None = None,
) -> CompressedVectors:
    """Return vectors in a smaller form.

    Args:
        vectors: Full vectors.
        compression: ``float16`` halves the bytes; ``int8`` quarters them, with one scale for each
            vector; ``binary`` keeps which side of the dimension's mean a number lies on.
        dim: Keep the first so many numbers and normalise what is left (Matryoshka); only encoders
            trained for it put the most important numbers first.

    Returns:
        The compressed vectors; ``bytes`` says what they take.

    Raises:
        VectorsError: If ``dim`` is out of range.

    Source:
        Kusupati et al., Matryoshka Representation Learning (arXiv 2205.13147) for cutting;
        Yamada et al., Binary Passage Retriever (arXiv 2106.00882) for bits scored by real-valued
        queries and scored again. Differs: bits divide at the mean, not at a learned place.
    """
    full_dim = vectors.shape[1]
    kept = full_dim if dim is None else dim
    if not 1 <= kept <= full_dim:
        raise VectorsError(f"expected to keep 1 to {full_dim} numbers of a vector, got {kept}")
    short = _cut(vectors, kept)
    nothing = np.empty(0, dtype=np.float32)
    codes, scales, middle = short, nothing, nothing
    if compression == "float16":
        codes = short.astype(np.float16)
    elif compression == "int8":
        scales = np.abs(short).max(axis=1) / np.float32(127)
        safe = np.where(scales > 0, scales, np.float32(1))
        codes = np.rint(short / safe[:, None]).astype(np.int8)
    elif compression == "binary":
        middle = short.mean(axis=0)
        codes = np.packbits(short > middle, axis=1)
    return CompressedVectors(
        compression=compression, dim=kept, codes=codes, scales=scales, middle=middle
    )


def _cut(vectors: Float[np.ndarray, "rows full_dim"], dim: int) -> Float[np.ndarray, "rows dim"]:
    """Return the first numbers of each vector, brought back to the length of the whole."""
    whole = np.asarray(vectors, dtype=np.float32)
    if dim == whole.shape[1]:
        return whole
    short = whole[:, :dim]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    target = np.linalg.norm(whole, axis=1, keepdims=True)
    restored: np.ndarray = short * (target / np.where(lengths > 0, lengths, 1))
    return restored.astype(np.float32)
