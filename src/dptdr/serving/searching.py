"""A served index with dense and hybrid search."""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dptdr.errors import DataError, ServingError, VectorsError
from dptdr.io.atomic import read_regular
from dptdr.records import Hit, Query
from dptdr.search.bm25 import Bm25Index
from dptdr.search.hybrid import Fusion, fuse
from dptdr.search.indexes.local import LocalIndex, open_index
from dptdr.search.vectors.documents import Filter

_FUSED_DEPTH = 100
"""Minimum number of hits per ranking to fuse."""


class ServedHit(NamedTuple):
    """A hit; ranks start at 1, scores are dot products or fused scores."""

    rank: int
    id: str
    score: float
    title: str
    text: str


class ServedIndex:
    """A loaded index folder.

    Args:
        task: The only task that may search it; empty for every matching task.
        hybrid: Build BM25 in memory if the index has none.

    Raises:
        VectorsError: If the folder is missing or damaged.
    """

    def __init__(self, path: Path, *, task: str = "", hybrid: bool = False) -> None:
        self.task = task
        self.name = path.name
        self.index: LocalIndex = open_index(path)
        self.lexical: Bm25Index | None = None
        if self.index.has_lexical:
            self.lexical = self.index.lexical()
        elif hybrid:
            self.lexical = Bm25Index.build(d.passage for d in self.index.vectors.all_documents())
        # Files are opened lazily, which is not thread-safe.
        self._lock = threading.Lock()
        if self.index.count:
            # Fail early if a file cannot be read, and warm up for the first query.
            self.search(self.index.vectors.gather(np.zeros(1, dtype=np.int64))[0], depth=1)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the vectors."""
        return self.index.origin.passage_fingerprint

    def fits(self, task: str, fingerprint: str) -> bool:
        """Check whether a task with this passage fingerprint may search the index."""
        return self.task in ("", task) and self.fingerprint == fingerprint

    def search(
        self,
        vector: Float[np.ndarray, " dim"],
        *,
        depth: int,
        text: str = "",
        fusion: Fusion | None = None,
        filters: Sequence[Filter] = (),
    ) -> list[ServedHit]:
        """Return the best passages.

        Args:
            vector: Query vector.
            depth: Maximum hits.
            text: Query text, for BM25.
            fusion: Fusion with BM25; ``None`` for dense search only.
            filters: Metadata filters; all must match.

        Raises:
            ServingError: If a fusion is requested and there is no BM25.
        """
        with self._lock:
            wanted = depth if fusion is None else max(depth, _FUSED_DEPTH)
            found = self.index.search(vector[None], depth=wanted, filters=filters)
            hits = [
                Hit(*pair) for pair in zip(found.ids[0], found.scores[0].tolist(), strict=False)
            ]
            if fusion is not None:
                words = self._words(text, depth=wanted, filters=filters)
                # Half each, as in `dptdr search`.
                rankings = [{"q": hits}, {"q": words}]
                hits = fuse(rankings, fusion=fusion, weights=(0.5, 0.5), depth=depth)["q"]
            documents = self.index.documents([hit.passage_id for hit in hits])
        return [
            ServedHit(rank, hit.passage_id, hit.score, found.passage.title, found.passage.text)
            for rank, (hit, found) in enumerate(zip(hits, documents, strict=True), start=1)
        ]

    def _words(self, text: str, *, depth: int, filters: Sequence[Filter]) -> list[Hit]:
        if self.lexical is None:
            raise ServingError(
                f"index '{self.name}' has no BM25; build it with `dptdr index --bm25`, start the "
                "server with --hybrid, or use mode 'dense'"
            )
        among = self.index.rows_where(filters) if filters else None
        return self.lexical.search([Query("q", text)], depth=depth, among=among)["q"]


def index_key(path: Path) -> str:
    """Hash an index's manifests to identify it.

    Raises:
        VectorsError: If there is no index.
    """
    try:
        parts = [read_regular(path / name) for name in ("manifest.json", "vectors/manifest.json")]
    except DataError:
        raise VectorsError(
            f"{path}: expected an index folder; create one with `dptdr index`"
        ) from None
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
