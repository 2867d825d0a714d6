"""Search inside a server: the vector comes from the engine, the hits from an index that fits."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dptdr.errors import ServingError, VectorsError, WrongPrompt
from dptdr.records import Hit, Passage, Query
from dptdr.search.bm25 import Bm25Index
from dptdr.search.hybrid import fuse
from dptdr.search.indexes.local import LocalIndex, open_index
from dptdr.search.vectors.documents import Filter
from dptdr.serving.tasks.prompt_cache import TaskVersion

Mode = Literal["dense", "hybrid"]

_POOL = 100
"""Hits that each side brings to the fusion, at least."""


class ServedHit(NamedTuple):
    """A passage that was found.

    Args:
        rank: From 1.
        id: The passage's id.
        score: Dot product, or the fused score in hybrid mode.
        title: Title of the passage.
        text: Its text.
    """

    rank: int
    id: str
    score: float
    title: str
    text: str


class ServedIndex:
    """One index of a server.

    Args:
        task: The task it was given for; empty: any that fits.
        path: The index folder.
        hybrid: Whether to build BM25 beside it, in memory.

    Raises:
        VectorsError: If the folder is missing or damaged.
    """

    def __init__(self, task: str, path: Path, *, hybrid: bool) -> None:
        self.task = task
        self.name = path.name
        self.index: LocalIndex = open_index(path)
        self.lexical: Bm25Index | None = None
        if hybrid:
            self.lexical = Bm25Index.build(self._passages())
        # Files of an index are opened lazily, in an order that threads must not mix up.
        self._lock = threading.Lock()

    def _passages(self) -> Iterator[Passage]:
        return (document.passage for document in self.index.vectors.all_documents())

    def fits(self, version: TaskVersion) -> bool:
        """Whether a version may search here and its queries belong to these vectors."""
        made = self.index.origin.passage_fingerprint
        return self.task in ("", version.task) and made == version.fingerprints["passage"]

    def search(
        self,
        vector: Float[np.ndarray, " dim"],
        *,
        text: str,
        depth: int,
        mode: Mode,
        filters: Sequence[Filter],
    ) -> list[ServedHit]:
        """Return the best passages.

        Args:
            vector: The query's vector.
            text: The query's text, for BM25.
            depth: Most hits.
            mode: ``dense``, or ``hybrid`` to fuse with BM25 by reciprocal ranks.
            filters: Conditions on metadata.

        Returns:
            Hits, best first.

        Raises:
            ServingError: If hybrid search was not prepared.
        """
        with self._lock:
            pool = depth if mode == "dense" else max(depth, _POOL)
            found = self.index.search(vector[None], depth=pool, filters=filters)
            ids = found.ids[0]
            scores = [float(score) for score in found.scores[0][: len(ids)]]
            if mode == "hybrid":
                ids, scores = self._fused(text, ids, depth=depth, pool=pool, filters=filters)
            documents = self.index.documents(ids)
        return [
            ServedHit(rank, name, score, document.passage.title, document.passage.text)
            for rank, (name, score, document) in enumerate(
                zip(ids, scores, documents, strict=True), start=1
            )
        ]

    def _fused(
        self, text: str, dense: list[str], *, depth: int, pool: int, filters: Sequence[Filter]
    ) -> tuple[list[str], list[float]]:
        if self.lexical is None:
            raise ServingError(
                f"index '{self.name}' has no BM25 beside it; start the server with --hybrid, or "
                "ask for mode 'dense'"
            )
        run = self.lexical.search([Query("q", text)], depth=pool)
        lexical = [hit.passage_id for hit in run.get("q", [])]
        if filters:
            kept = self.index.documents(lexical)
            lexical = [d.passage.id for d in kept if all(f.keeps(d.metadata) for f in filters)]
        rankings = [{"q": [Hit(name, 0.0) for name in names]} for names in (dense, lexical)]
        fused = fuse(rankings, depth=depth)["q"]
        return [hit.passage_id for hit in fused], [hit.score for hit in fused]


class Searcher:
    """All indexes of a server.

    Args:
        indexes: Task (may be empty) and folder of each.
        hybrid: Whether to build BM25 beside them.
    """

    def __init__(self, indexes: Sequence[tuple[str, Path]], *, hybrid: bool = False) -> None:
        self.indexes = [ServedIndex(task, path, hybrid=hybrid) for task, path in indexes]

    def find(self, version: TaskVersion) -> ServedIndex:
        """Return the index that a version can search: its own, else one given for any task.

        Args:
            version: Whose queries are searched.

        Returns:
            The index.

        Raises:
            WrongPrompt: If the task's own index was made by another version.
            ServingError: If there is none.
        """
        wanted = version.fingerprints["passage"]
        own = [served for served in self.indexes if served.task == version.task]
        for served in [*own, *self.indexes]:
            if served.fits(version):
                return served
        if own:
            origin = own[0].index.origin
            raise WrongPrompt(
                f"index '{own[0].name}' holds vectors of '{origin.encoder}' with passage "
                f"fingerprint {origin.passage_fingerprint}, but {version.name} makes {wanted}; "
                "renew the index (dptdr index --refresh), or search with the version that made it"
            )
        raise ServingError(
            f"no index fits {version.name}; start the server with --index {version.task}=FOLDER"
        )

    def check(self, dim: int) -> None:
        """Refuse indexes of another backbone's size at start.

        Raises:
            VectorsError: If an index has another dimension.
        """
        for served in self.indexes:
            if served.index.dim != dim:
                raise VectorsError(
                    f"{served.index.path}: expected vectors of {dim} numbers, got "
                    f"{served.index.dim}; it was made by another backbone"
                )


class Answer(NamedTuple):
    """Hits of one task.

    Args:
        hits: The hits, best first.
        source: Which index they come from.
        search_seconds: Time in the index.
    """

    hits: list[ServedHit]
    source: str
    search_seconds: float


def answer(
    served: ServedIndex,
    vector: Float[np.ndarray, " dim"],
    *,
    text: str,
    depth: int,
    mode: Mode,
    filters: Sequence[Filter],
) -> Answer:
    """Search one index and say how long it took."""
    began = time.perf_counter()
    hits = served.search(vector, text=text, depth=depth, mode=mode, filters=filters)
    return Answer(hits, served.name, time.perf_counter() - began)
