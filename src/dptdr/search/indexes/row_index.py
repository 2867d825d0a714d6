"""Row-level search, the basis of local indexes."""

import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from dptdr.errors import VectorsError
from dptdr.search.exact import TopK, top_k_of_blocks
from dptdr.search.vectors.folder import VectorFolder

_RESCORED_AT_ONCE = 2048

_MERGED_AT_ONCE = 8
"""Blocks to score before merging their best rows."""


@runtime_checkable
class RowIndex(Protocol):
    """Protocol for searching the rows of a vector folder."""

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dim"],
        *,
        depth: int,
        allowed: Int64[np.ndarray, " rows"] | None,
    ) -> TopK:
        """Return scores and row numbers, best first, padded with row -1.

        Args:
            allowed: Rows to search, in ascending order; None for all.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the index to a file; exact search writes nothing."""
        ...


class ExactRows:
    """Exhaustive search over memory-mapped vectors, block by block."""

    def __init__(self, folder: VectorFolder) -> None:
        self.folder = folder
        self._finite = False

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dim"],
        *,
        depth: int,
        allowed: Int64[np.ndarray, " rows"] | None,
    ) -> TopK:
        """Return the best rows; see :class:`RowIndex`."""
        if allowed is not None:
            return exact_among(self.folder, vectors, allowed=allowed, depth=depth)
        self._check_finite()
        return _best_of_all(self.folder, vectors, depth=depth)

    def _check_finite(self) -> None:
        """Check once for NaN and infinity, which search would silently skip."""
        if self._finite:
            return
        for start, block in self.folder.blocks():
            broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(broken):
                raise VectorsError(
                    f"{self.folder.path}: the vector in row {start + broken[0]} contains NaN or "
                    "infinity; re-encode"
                )
        self._finite = True

    def save(self, path: Path) -> None:
        """Do nothing: the vectors are the index."""


def _best_of_all(
    folder: VectorFolder, vectors: Float32[np.ndarray, "queries dim"], *, depth: int
) -> TopK:
    """Return the best rows of the whole folder; ties go to the lower row."""
    faiss: Any = importlib.import_module("faiss")
    scores = np.empty((len(vectors), 0), dtype=np.float32)
    rows = np.empty((len(vectors), 0), dtype=np.int64)
    unclear = np.zeros(len(vectors), dtype=bool)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for start, block in folder.blocks():
        # One extra hit shows whether the last place was decided by a tie.
        wanted = min(depth + 1, len(block))
        passages = np.ascontiguousarray(block, dtype=np.float32)
        found = faiss.knn(vectors, passages, wanted, metric=faiss.METRIC_INNER_PRODUCT)
        if wanted > depth:
            unclear |= found[0][:, depth - 1] == found[0][:, depth]
        held.append((found[0][:, :depth], found[1][:, :depth] + start))
        if len(held) == _MERGED_AT_ONCE:
            scores, rows = _merged([(scores, rows), *held], depth=depth)
            held = []
    scores, rows = _merged([(scores, rows), *held], depth=depth)
    if unclear.any():
        again = top_k_of_blocks(vectors[unclear], folder.blocks(), depth=depth)
        scores[unclear], rows[unclear] = again
    return scores, rows


def _merged(
    parts: list[tuple[np.ndarray, np.ndarray]], *, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def exact_among(
    folder: VectorFolder,
    vectors: Float32[np.ndarray, "queries dim"],
    *,
    allowed: Int64[np.ndarray, " rows"],
    depth: int,
) -> TopK:
    """Score all ``allowed`` rows (in ascending order) and return the best."""
    step = 16_384
    blocks = (
        (start, folder.gather(allowed[start : start + step]))
        for start in range(0, len(allowed), step)
    )
    scores, places = top_k_of_blocks(vectors, blocks, depth=depth)
    return scores, allowed[places] if len(allowed) else places


def rescore(
    folder: VectorFolder,
    vectors: Float32[np.ndarray, "queries dim"],
    *,
    candidates: Int64[np.ndarray, "queries candidates"],
    depth: int,
) -> TopK:
    """Rescore candidate rows with the full vectors from disk and keep the best.

    Args:
        candidates: Row numbers for each query, padded with -1.

    Returns:
        Scores and rows, best first, padded with -inf and row -1; ties go to the lower row.
    """
    scores = np.empty(candidates.shape, dtype=np.float32)
    # Process a few queries at a time, so that their candidate vectors stay in cache.
    step = max(1, _RESCORED_AT_ONCE // candidates.shape[1])
    for start in range(0, len(candidates), step):
        some = slice(start, start + step)
        rows = np.maximum(candidates[some], 0)
        full = folder.gather(rows.ravel()).reshape(*rows.shape, folder.dim)
        scores[some] = np.matmul(full, vectors[some, :, None])[:, :, 0]
    scores[candidates < 0] = -np.inf
    order = np.lexsort((candidates, -scores), axis=1)[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)
