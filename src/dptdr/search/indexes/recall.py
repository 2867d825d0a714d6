"""Recall of approximate indexes compared with exact search."""

import numpy as np

from dptdr.search.index import Index
from dptdr.search.indexes.row_index import ExactRows
from dptdr.search.vectors.folder import VectorFolder

RECALL_DEPTH = 10
RECALL_QUERIES = 200
MIN_RECALL = 0.95
"""Lower recall triggers a warning, or makes ``auto`` try another type."""


def measure_recall(
    index: Index, folder: VectorFolder, *, seed: int = 1234, tolerance: float = 1e-5
) -> float:
    """Measure recall@10 against exact search, using stored vectors as queries.

    A vector is not counted as its own hit. Any passage scoring at least as high as the exact tenth
    hit counts, so duplicates are interchangeable.
    """
    depth = min(RECALL_DEPTH, folder.count - 1)
    if depth == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    size = min(RECALL_QUERIES, folder.count)
    rows = np.sort(generator.choice(folder.count, size=size, replace=False)).astype(np.int64)
    queries = folder.gather(rows)
    exact_scores, exact = ExactRows(folder).search(queries, depth=depth + 1, allowed=None)
    found = index.search(queries, depth=depth + 1)
    others = exact != rows[:, None]
    # If duplicates push a vector out of its own ranking, drop the last hit instead.
    others[others.all(axis=1), -1] = False
    least = np.where(others, exact_scores, np.inf).min(axis=1)
    bounds = least - tolerance * np.maximum(1, np.abs(least))
    right = [
        min(depth, sum(name != own for name, score in zip(ids, scores, strict=False) if score >= b))
        for own, ids, scores, b in zip(
            folder.ids(rows), found.ids, found.scores, bounds, strict=True
        )
    ]
    return sum(right) / (depth * size)


def recall_warning(recall: float, *, advice: str) -> str | None:
    """Return a warning about low recall, or None."""
    if recall >= MIN_RECALL:
        return None
    return (
        f"recall@{RECALL_DEPTH} against exact search is {recall:.3f} on stored vectors, below "
        f"{MIN_RECALL}: {advice}"
    )
