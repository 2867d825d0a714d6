"""How much of what exact search finds an approximate index finds."""

import numpy as np

from dptdr.search.indexes.local import LocalIndex
from dptdr.search.indexes.rows import ExactRows

RECALL_DEPTH = 10
RECALL_QUERIES = 200
MIN_RECALL = 0.95
"""An index that finds less is reported, and ``auto`` takes another type."""


def measure_recall(index: LocalIndex, *, seed: int = 1234) -> float:
    """Return recall@10 against exact search, with stored vectors as queries.

    A vector does not count as its own answer. A passage counts when it scores as high as the tenth
    of the exact ranking, so that copies may stand for each other.

    Args:
        index: The index.
        seed: Decides which vectors are asked.

    Returns:
        The share found, from 0 to 1.
    """
    folder = index.vectors
    depth = min(RECALL_DEPTH, folder.count - 1)
    if depth == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    size = min(RECALL_QUERIES, folder.count)
    rows = np.sort(generator.choice(folder.count, size=size, replace=False)).astype(np.int64)
    queries = folder.gather(rows)
    exact_scores, exact = ExactRows(folder).search(queries, depth=depth + 1, allowed=None)
    scores, found = index.search_rows(queries, depth=depth + 1)
    others = exact != rows[:, None]
    # Where copies push a vector out of its own ranking, the last of them is left out instead.
    others[others.all(axis=1), -1] = False
    least = np.where(others, exact_scores, np.inf).min(axis=1)
    right = (found >= 0) & (found != rows[:, None])
    right &= scores >= (least - 1e-5 * np.maximum(1, np.abs(least)))[:, None]
    return float(np.minimum(right.sum(axis=1), depth).mean() / depth)
