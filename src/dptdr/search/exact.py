"""Exact dot-product search in blocks, with deterministic ties."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from dptdr.errors import VectorsError

BLOCK_ROWS = 16_384
"""Passages per block: enough for an efficient matrix product, few enough to stay in cache."""

_BLOCK_QUERIES = 512
"""Queries per block; keeps a block of scores below 32 MB."""


TopK: TypeAlias = tuple[Float[np.ndarray, "queries depth"], Int[np.ndarray, "queries depth"]]
"""Scores (float32) and row numbers (int64), best first."""


def exact_top_k(
    query_vectors: Float[np.ndarray, "queries dim"],
    passage_vectors: Float[np.ndarray, "passages dim"],
    *,
    depth: int,
    block_rows: int = BLOCK_ROWS,
) -> TopK:
    """Return the ``min(depth, passages)`` passages with the highest dot product for each query.

    Ties go to the lower row, even across blocks. Passage vectors may be memory-mapped or float16;
    only one block of ``block_rows`` is converted to float32 at a time.

    Raises:
        ValueError: If ``depth`` is below 1.
        VectorsError: If a score is NaN.
    """
    starts = range(0, passage_vectors.shape[0], block_rows)
    blocks = ((start, passage_vectors[start : start + block_rows]) for start in starts)
    return top_k_of_blocks(query_vectors, blocks, depth=depth)


def top_k_of_blocks(
    query_vectors: Float[np.ndarray, "queries dim"],
    blocks: Iterable[tuple[int, np.ndarray]],
    *,
    depth: int,
) -> TopK:
    """Apply :func:`exact_top_k` to a stream of (first row, vectors)."""
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    queries = np.ascontiguousarray(query_vectors, dtype=np.float32)
    best = [_Best() for _ in range(len(queries))]
    for first_row, block in blocks:
        vectors = np.asarray(block, dtype=np.float32)
        for start in range(0, len(queries), _BLOCK_QUERIES):
            scores = queries[start : start + _BLOCK_QUERIES] @ vectors.T
            if np.isnan(scores.sum()) and np.isnan(scores).any():
                raise VectorsError(_nan_message(queries, vectors, first_row=first_row))
            for offset, row_scores in enumerate(scores):
                best[start + offset].offer(row_scores, first_row=first_row, depth=depth)
    width = len(best[0].rows) if best else 0
    all_scores = np.empty((len(queries), width), dtype=np.float32)
    all_rows = np.empty((len(queries), width), dtype=np.int64)
    for index, state in enumerate(best):
        order = np.lexsort((state.rows, -state.scores))
        all_scores[index] = state.scores[order]
        all_rows[index] = state.rows[order]
    return all_scores, all_rows


class _Best:
    """The best passages so far for one query, unordered."""

    __slots__ = ("rows", "scores")

    def __init__(self) -> None:
        self.scores = np.empty(0, dtype=np.float32)
        self.rows = np.empty(0, dtype=np.int64)

    def offer(self, scores: np.ndarray, *, first_row: int, depth: int) -> None:
        """Merge scores of the block starting at ``first_row``."""
        head = max(1024, 4 * depth)
        if not len(self.scores) and len(scores) > 2 * head:
            # Estimating the threshold from a few scores avoids sorting all of them.
            self.offer(scores[:head], first_row=first_row, depth=depth)
            scores, first_row = scores[head:], first_row + head
        if len(self.scores) < depth:
            columns = np.arange(len(scores))
        else:
            # Later blocks have higher rows, so the earlier passage wins a tie.
            columns = np.flatnonzero(scores > self.scores.min())
            if not len(columns):
                return
        if len(columns) > depth:
            columns = columns[_cut(scores[columns], depth)]
        self.scores = np.concatenate([self.scores, scores[columns]])
        self.rows = np.concatenate([self.rows, columns + first_row])
        if len(self.scores) > depth:
            # Rows are in ascending order here; _cut relies on this to break ties.
            kept = _cut(self.scores, depth)
            self.scores, self.rows = self.scores[kept], self.rows[kept]


def _cut(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the sorted positions of the ``depth`` highest scores; ties go to the lower."""
    threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    above = scores > threshold
    level = np.flatnonzero(scores == threshold)[: depth - int(above.sum())]
    above[level] = True
    return np.flatnonzero(above)


def _nan_message(queries: np.ndarray, vectors: np.ndarray, *, first_row: int) -> str:
    """Return an error message for NaN scores.

    It names the first query or passage vector with non-finite values, or blames overflow if all are
    finite.
    """
    for what, array, offset in (("query", queries, 0), ("passage", vectors, first_row)):
        broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(broken):
            return (
                f"the vector in {what} row {broken[0] + offset} contains NaN or infinity; re-encode"
            )
    return "expected finite scores, but a dot product overflowed to NaN; normalise the vectors"
