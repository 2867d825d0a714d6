"""Text search: dense retrieval, optional BM25 fusion and optional re-ranking."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.errors import ConfigError, VectorsError
from dptdr.io.identical import (
    check_not_judged,
    is_own_passage,
    report_own_passages,
    without_own,
)
from dptdr.records import Qrels, Query, Run
from dptdr.search.bm25 import Bm25Index
from dptdr.search.hybrid import FUSIONS, Fusion, Tuned, fuse, tune_weights
from dptdr.search.index import Index, check_encoder, search_queries
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.indexes.types import Choice
from dptdr.search.rerank import Scorer, rerank
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Filter

Filters: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[Filter]
"""Metadata field to accepted value or values; a passage must match every field."""

_FUSED_DEPTH = 100
"""Minimum number of hits per ranking to fuse."""
_TEXT_ID = "\n"
"""Id for a bare query text; no passage can have it."""


class SearchResult(NamedTuple):
    """A hit; higher scores are better."""

    id: str
    score: float
    title: str
    text: str
    metadata: Mapping[str, Any] = {}


class SearchIndex:
    """An index searchable with query texts.

    Args:
        index: The vector index.
        encoder: Query encoder; must match the vectors.
        hybrid: Fuse with BM25 by ``rrf``, ``min-max`` or ``z-score``; ``None`` for dense only.
        dense_weight: Weight of the dense ranking in the fusion, from 0 to 1.
        scorer: Re-ranks the best hits.
        rerank_top: Number of hits to re-rank.
        where: Name of the index, for messages.
        choice: How the index type was chosen, if the index was just built.

    Raises:
        WrongPrompt: If the vectors come from a different prompt or backbone.
        VectorsError: If ``hybrid`` is unknown, or the index has no BM25.
    """

    def __init__(
        self,
        index: Index,
        encoder: TextEncoder | None = None,
        *,
        hybrid: str | None = None,
        dense_weight: float = 0.5,
        scorer: Scorer | None = None,
        rerank_top: int = 50,
        where: Path | str = "index",
        choice: Choice | None = None,
    ) -> None:
        if not 0 <= dense_weight <= 1:
            raise ConfigError(f"dense_weight: expected a number from 0 to 1, got {dense_weight}")
        reject_unused_arguments(
            {"dense_weight": hybrid is None and dense_weight != 0.5}, "without hybrid"
        )
        reject_unused_arguments(
            {"rerank_top": scorer is None and rerank_top != 50}, "without a cross-encoder"
        )
        self.index = index
        self.encoder = encoder
        self.choice = choice
        self.dense_weight = dense_weight
        self._scorer = scorer
        self._rerank_top = rerank_top
        self._fusion: Fusion | None = None
        self._words: Bm25Index | None = None
        if encoder is not None:
            check_encoder(index.origin, encoder, where=where)
        if hybrid is not None:
            if hybrid not in FUSIONS:
                raise VectorsError(
                    f"expected hybrid to be one of {', '.join(FUSIONS)}, got '{hybrid}'"
                )
            if not isinstance(index, LocalIndex):
                raise VectorsError(
                    f"hybrid search needs a local index with BM25, got a {index.index_type} index"
                )
            self._fusion, self._words = cast(Fusion, hybrid), index.lexical()

    def __len__(self) -> int:
        """Number of passages."""
        return self.index.count

    @property
    def name(self) -> str:
        """Name of the encoder, or of the encoder that made the vectors."""
        return self.index.origin.encoder if self.encoder is None else self.encoder.name

    def __enter__(self) -> "SearchIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @checked
    def search(self, text: str, *, k: int = 10, filters: Filters = ()) -> list[SearchResult]:
        """Return the best ``k`` passages for a query text.

        Args:
            filters: Metadata field to accepted value or values; all fields must match.
        """
        check_counts(k=k)
        hits = self.run([Query(_TEXT_ID, text)], depth=k, filters=filters)[_TEXT_ID]
        documents = self.index.documents([hit.passage_id for hit in hits])
        return [
            SearchResult(hit.passage_id, hit.score, passage.title, passage.text, metadata)
            for hit, (passage, metadata) in zip(hits, documents, strict=True)
        ]

    @checked
    def run(
        self,
        queries: Sequence[Query],
        *,
        depth: int = 100,
        filters: Filters = (),
        keep_identical: bool = False,
        qrels: Qrels | None = None,
    ) -> Run:
        """Search for many queries and return the hits by query id.

        Args:
            depth: Maximum hits per query.
            filters: As for :meth:`search`.
            keep_identical: Let a query that is also a passage retrieve itself.
            qrels: Judgements, if known, to notice answers that only happen to have a query's id.

        Raises:
            DataError: If there is such an answer.
        """
        check_counts(depth=depth)
        conditions = _conditions(filters)
        wanted = max(depth, self._rerank_top) if self._scorer is not None else depth
        wanted += not keep_identical
        rankings: Sequence[Run]
        if self._fusion is None:
            rankings = [self._dense(queries, depth=wanted, filters=conditions)]
        else:
            rankings = self._rankings(queries, depth=wanted, filters=conditions)
        if not keep_identical:
            # Before fusing: the own passage's score would scale all others.
            rankings, own = self._without_own(queries, rankings, qrels=qrels)
            report_own_passages(own)
        run = rankings[0]
        if self._fusion is not None:
            weights = (self.dense_weight, 1 - self.dense_weight)
            run = fuse(rankings, fusion=self._fusion, weights=weights, depth=wanted)
        if self._scorer is not None:
            run = rerank(
                run,
                queries=queries,
                contents=self._contents,
                scorer=self._scorer,
                top=self._rerank_top,
            )
        return {name: hits[:depth] for name, hits in run.items()}

    def tune(self, queries: Sequence[Query], qrels: Qrels) -> Tuned:
        """Tune ``dense_weight`` on judged queries and return the measures for all weights.

        Raises:
            DataError: See :meth:`run`.
            VectorsError: If the search is not hybrid.
        """
        if self._fusion is None:
            raise VectorsError(
                "expected a hybrid search to tune, got a dense one; open the index with hybrid"
            )
        rankings = self._rankings(queries, depth=_FUSED_DEPTH, filters=())
        cleaned, _ = self._without_own(queries, rankings, qrels=qrels)
        tuned = tune_weights(cleaned, qrels, fusion=self._fusion)
        self.dense_weight = tuned.weights[0]
        return tuned

    def close(self) -> None:
        """Close the database connection, if any."""
        close = getattr(self.index, "close", None)
        if close is not None:
            close()

    def _dense(self, queries: Sequence[Query], *, depth: int, filters: Sequence[Filter]) -> Run:
        if self.encoder is None:
            raise ConfigError(
                "expected an encoder for the query texts, got none; open the index with one, as "
                'in dptdr.open_index("INDEX", "TASK")'
            )
        return search_queries(
            self.index, self.encoder, queries=queries, depth=depth, filters=filters
        )

    def _rankings(
        self, queries: Sequence[Query], *, depth: int, filters: Sequence[Filter]
    ) -> tuple[Run, Run]:
        assert self._words is not None
        assert isinstance(self.index, LocalIndex)
        depth = max(depth, _FUSED_DEPTH)
        dense = self._dense(queries, depth=depth, filters=filters)
        among = self.index.rows_where(filters) if filters else None
        return dense, self._words.search(queries, depth=depth, among=among)

    def _without_own(
        self, queries: Sequence[Query], rankings: Sequence[Run], *, qrels: Qrels | None
    ) -> tuple[list[Run], int]:
        """Remove queries from their own rankings; also return how many there are."""
        own = set().union(*(self._own(queries, run, qrels=qrels or {}) for run in rankings))
        return [without_own(run, own) for run in rankings], len(own)

    def _own(self, queries: Sequence[Query], run: Run, *, qrels: Qrels) -> set[str]:
        """Return the ids of queries that retrieved themselves."""
        met = [q for q in queries if any(hit.passage_id == q.id for hit in run[q.id])]
        documents = self.index.documents([query.id for query in met])
        own = set()
        for query, (passage, _) in zip(met, documents, strict=True):
            if is_own_passage(query, passage):
                check_not_judged(query, passage, qrels.get(query.id, {}).get(passage.id, 0))
                own.add(query.id)
        return own

    def _contents(self, ids: Sequence[str]) -> list[str]:
        return [document.passage.content for document in self.index.documents(ids)]


def _conditions(given: Filters) -> Sequence[Filter]:
    if not isinstance(given, Mapping):
        return given
    return [Filter(field, values) for field, values in given.items()]
