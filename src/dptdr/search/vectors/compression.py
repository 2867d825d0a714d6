"""Compress vectors to float16, int8 or binary, or to fewer dimensions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Int64

from dptdr.errors import VectorsError
from dptdr.search.exact import BLOCK_ROWS

Compression: TypeAlias = Literal["float32", "float16", "int8", "binary"]
COMPRESSIONS: tuple[str, ...] = get_args(Compression)


@dataclass(frozen=True, kw_only=True)
class CompressedVectors:
    """Quantized vectors with exhaustive search.

    Args:
        scales: For ``int8``, the scale factor of each vector; otherwise empty.
        middle: For ``binary``, the threshold of each dimension; otherwise empty.
    """

    compression: Compression
    dim: int
    codes: np.ndarray
    scales: np.ndarray
    middle: np.ndarray

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.codes.nbytes + self.scales.nbytes + self.middle.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def concatenate(cls, parts: Sequence["CompressedVectors"]) -> "CompressedVectors":
        """Concatenate parts with the same compression."""
        first = parts[0]
        return cls(
            compression=first.compression,
            dim=first.dim,
            codes=np.concatenate([part.codes for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
            middle=first.middle,
        )

    def as_stored(self) -> np.ndarray:
        """Pack everything into one array with a row per vector, for storage."""
        if self.compression != "int8":
            return self.codes
        stored = np.empty(len(self.codes), dtype=_int8_rows(self.dim))
        stored["scale"], stored["codes"] = self.scales, self.codes
        return stored

    @classmethod
    def from_stored(
        cls, stored: np.ndarray, *, compression: Compression, dim: int, count: int
    ) -> "CompressedVectors":
        """Unpack the result of :meth:`as_stored`.

        Raises:
            VectorsError: If the array has the wrong shape or dtype.
        """
        width = (dim + 7) // 8 if compression == "binary" else dim
        numbers = "uint8" if compression == "binary" else compression
        expected = (
            (_int8_rows(dim), (count,)) if compression == "int8" else (numbers, (count, width))
        )
        if (stored.dtype, stored.shape) != (np.dtype(expected[0]), expected[1]):
            raise VectorsError(
                f"expected {count} {compression} vectors of dimension {dim}, got an array of shape "
                f"{stored.shape} and dtype {stored.dtype}"
            )
        nothing = np.empty(0, dtype=np.float32)
        int8 = compression == "int8"
        return cls(
            compression=compression,
            dim=dim,
            codes=np.asarray(stored["codes"] if int8 else stored),
            scales=np.asarray(stored["scale"]) if int8 else nothing,
            middle=nothing,
        )

    def blocks(
        self, rows: Int64[np.ndarray, " rows"] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the offset and the dequantized vectors of consecutive blocks.

        Args:
            rows: Rows to read; None for all.

        Yields:
            Offset of the block within ``rows``, and float32 vectors; ``binary`` values are ±1.
        """
        for start in range(0, len(self.codes) if rows is None else len(rows), BLOCK_ROWS):
            some = (
                slice(start, start + BLOCK_ROWS)
                if rows is None
                else rows[start : start + BLOCK_ROWS]
            )
            codes = self.codes[some]
            if self.compression == "binary":
                bits = np.unpackbits(codes, axis=1, count=self.dim)
                yield start, bits.astype(np.float32) * 2 - 1
            elif self.compression == "int8":
                yield start, codes.astype(np.float32) * self.scales[some, None]
            else:
                yield start, codes


def compress(
    vectors: Float[np.ndarray, "passages full_dim"],
    *,
    compression: Compression = "float32",
    dim: int | None = None,
    middle: Float[np.ndarray, " dim"] | None = None,
) -> CompressedVectors:
    """Truncate and quantize vectors.

    Args:
        compression: ``float16`` halves the size; ``int8`` quarters it, with one scale per vector;
            ``binary`` keeps one bit per dimension, set above the threshold.
        dim: Keep this many leading dimensions and rescale each vector to its length before; works
            well only with encoders trained for it (Matryoshka).
        middle: For ``binary``, the threshold of each dimension; by default the mean over these
            vectors.

    Raises:
        VectorsError: If ``dim`` is out of range.

    Source:
        Kusupati et al., Matryoshka Representation Learning (arXiv 2205.13147) for truncation;
        Yamada et al., Binary Passage Retriever (arXiv 2106.00882) for scoring binary codes with
        real-valued queries and rescoring. Differs: the threshold is the mean, not learned.
    """
    full_dim = vectors.shape[1]
    kept = full_dim if dim is None else dim
    if not 1 <= kept <= full_dim:
        raise VectorsError(f"expected to keep 1 to {full_dim} dimensions, got {kept}")
    short = shorten(vectors, kept)
    nothing = np.empty(0, dtype=np.float32)
    codes, scales, divides = short, nothing, nothing
    if compression == "float16":
        codes = short.astype(np.float16)
    elif compression == "int8":
        scales = np.abs(short).max(axis=1) / np.float32(127)
        safe = np.where(scales > 0, scales, np.float32(1))
        codes = np.rint(short / safe[:, None]).astype(np.int8)
    elif compression == "binary":
        divides = short.mean(axis=0) if middle is None else np.asarray(middle, dtype=np.float32)
        codes = np.packbits(short > divides, axis=1)
    return CompressedVectors(
        compression=compression, dim=kept, codes=codes, scales=scales, middle=divides
    )


def _int8_rows(dim: int) -> np.dtype[Any]:
    return np.dtype([("scale", "<f4"), ("codes", "i1", (dim,))])


def shorten(vectors: Float[np.ndarray, "rows full_dim"], dim: int) -> Float[np.ndarray, "rows dim"]:
    """Truncate each vector to its leading dimensions and restore its norm."""
    whole = np.asarray(vectors, dtype=np.float32)
    if dim == whole.shape[1]:
        return whole
    short = whole[:, :dim]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    target = np.linalg.norm(whole, axis=1, keepdims=True)
    restored: np.ndarray = short * (target / np.where(lengths > 0, lengths, 1))
    return restored.astype(np.float32)
