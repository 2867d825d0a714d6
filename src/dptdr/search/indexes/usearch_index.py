"""The kind of index that usearch makes (optional extra ``usearch``)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dptdr.errors import VectorsError
from dptdr.search.vectors.folder import VectorFolder


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise VectorsError(
            f"the kind 'usearch' needs the package usearch ({error}); "
            "run `pip install 'dptdr[usearch]'`, or take --kind hnsw"
        ) from None
    return Index


class UsearchRows:
    """A usearch graph over the rows of a vector folder, in bfloat16.

    Args:
        index: The usearch index, whose keys are row numbers.
        threads: Threads while searching, 0 for all cores.
    """

    # Its Python interface takes no predicate.
    can_filter = False

    def __init__(self, index: Any, *, threads: int = 0) -> None:
        self.index = index
        self.threads = threads

    @classmethod
    def build(
        cls,
        folder: VectorFolder,
        *,
        threads: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "UsearchRows":
        """Build an index over all rows of a folder.

        Args:
            folder: The vectors.
            threads: Threads, 0 for all cores; with 1 the same vectors give the same graph.
            on_progress: Called with (passages added, passages).

        Returns:
            The index.

        Raises:
            VectorsError: If usearch is not installed.
        """
        index = _usearch()(
            ndim=folder.dim,
            metric="ip",
            dtype="bf16",
            connectivity=32,
            expansion_add=100,
            expansion_search=96,
        )
        for start, block in folder.blocks():
            keys = np.arange(start, start + len(block), dtype=np.uint64)
            index.add(keys, np.ascontiguousarray(block, dtype=np.float32), threads=threads)
            if on_progress is not None:
                on_progress(start + len(block), folder.count)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> "UsearchRows":
        """Map an index from a file.

        Args:
            path: The file.

        Returns:
            The index, read from disk as it is searched.

        Raises:
            VectorsError: If usearch is not installed or cannot read the file.
        """
        restore = _usearch().restore
        try:
            index = restore(str(path), view=True)
        except (RuntimeError, ValueError) as error:
            raise VectorsError(f"{path}: usearch cannot read it ({error})") from None
        if index is None:
            raise VectorsError(f"{path}: usearch cannot read it")
        return cls(index)

    def save(self, path: Path) -> None:
        """Write the index to a file.

        Args:
            path: The file.
        """
        self.index.save(str(path))

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dim"],
        *,
        depth: int,
        allowed: Int64[np.ndarray, " rows"] | None,
    ) -> tuple[Float32[np.ndarray, "queries depth"], Int64[np.ndarray, "queries depth"]]:
        """Return the best rows; see :class:`dptdr.search.indexes.rows.RowIndex`."""
        if allowed is not None:
            raise ValueError("usearch cannot search among some rows only")
        scores = np.full((len(vectors), depth), -np.inf, dtype=np.float32)
        rows = np.full((len(vectors), depth), -1, dtype=np.int64)
        if not len(vectors):
            return scores, rows
        found = self.index.search(vectors, depth, threads=self.threads)
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        width = keys.shape[1]
        # Places that found nothing hold whatever was in memory; they are cleared below.
        with np.errstate(all="ignore"):
            scores[:, :width] = 1 - distances
        rows[:, :width] = keys.astype(np.int64)
        counts = np.atleast_1d(getattr(found, "counts", np.array([width] * len(vectors))))
        missing = np.arange(depth)[None, :] >= counts[:, None]
        scores[missing], rows[missing] = -np.inf, -1
        return scores, rows
