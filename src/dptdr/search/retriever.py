"""An index with an encoder: texts in, passages out.

The stages of a search: vectors, words, fusion, a second scorer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from dptdr.config.arguments import check_counts, checked
from dptdr.errors import ConfigError, VectorsError
from dptdr.io.identical import is_own_passage, say_own, without_own
from dptdr.records import Hit, Qrels, Query, Run
from dptdr.search.bm25 import Bm25Index
from dptdr.search.hybrid import FUSIONS, Fusion, Tuned, fuse, tune_weights
from dptdr.search.index import Index, check_encoder, search_queries
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.indexes.types import Choice
from dptdr.search.rerank import Scorer, rerank
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Filter

Filters: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[Filter]
"""Metadata field to the value, or values, that a passage may have in it; all must hold."""

_FUSED_DEPTH = 100
"""Minimum number of hits that each ranking brings to a fusion."""
_FILTERED_WORDS = 10
"""How many times more BM25 hits are fetched where a filter drops some of them afterwards."""
_TEXT_ID = "\n"
"""Id of a query that has none: no passage can have it."""


class SearchResult(NamedTuple):
    """A hit; higher scores are better."""

    id: str
    score: float
    title: str
    text: str
    metadata: Mapping[str, Any] = {}


class SearchIndex:
    """An index that texts can be searched in.

    Args:
        index: Where the vectors are.
        encoder: Encodes the queries; must fit the vectors.
        hybrid: Merge with BM25 by ``rrf``, ``min-max`` or ``z-score``; ``None`` for vectors alone.
        dense_weight: Share of the vectors in a merge, 0 to 1.
        scorer: Ranks the best hits again.
        rerank_top: Hits that the scorer sees.
        where: Name of the index, for messages.
        choice: Why it is of its type, if it was just built.

    Raises:
        WrongPrompt: If another prompt or backbone made the vectors.
        VectorsError: If BM25 is wanted and the index has none, or there is no such merge.
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
                raise VectorsError(f"expected a fusion out of {', '.join(FUSIONS)}, got '{hybrid}'")
            if not isinstance(index, LocalIndex):
                raise VectorsError(
                    f"BM25 lies beside an index in a folder; a {index.index_type} index has none"
                )
            self._fusion, self._words = cast(Fusion, hybrid), index.lexical()

    def __len__(self) -> int:
        """Number of passages."""
        return self.index.count

    @property
    def name(self) -> str:
        """Name of the encoder, or of the one that made the vectors."""
        return self.index.origin.encoder if self.encoder is None else self.encoder.name

    def __enter__(self) -> "SearchIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @checked
    def search(self, text: str, *, k: int = 10, filters: Filters = ()) -> list[SearchResult]:
        """Return the best passages for a text.

        Args:
            text: What to search for.
            k: Maximum number of passages.
            filters: Metadata field to the value, or values, that a passage may have in it.

        Returns:
            At most ``k`` passages with their texts.
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
    ) -> Run:
        """Return the hits of many queries, by query id.

        Args:
            queries: The queries.
            depth: Maximum number of hits for each.
            filters: As for :meth:`search`.
            keep_identical: Whether a query that is a passage of the index may find itself.

        Returns:
            The run.
        """
        check_counts(depth=depth)
        conditions = _conditions(filters)
        wanted = max(depth, self._rerank_top) if self._scorer is not None else depth
        wanted += not keep_identical
        if self._fusion is None:
            run = self._dense(queries, depth=wanted, filters=conditions)
        else:
            run = fuse(
                self._rankings(queries, depth=wanted, filters=conditions),
                fusion=self._fusion,
                weights=(self.dense_weight, 1 - self.dense_weight),
                depth=wanted,
            )
        if not keep_identical:
            own = self._own(queries, run)
            say_own(len(own))
            run = without_own(run, own, depth=wanted - 1)
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
        """Set ``dense_weight`` to the best one on judged queries, and return all results.

        Raises:
            VectorsError: If nothing is merged.
        """
        if self._fusion is None:
            raise VectorsError("expected a fusion to tune the weight of, the search uses none")
        rankings = self._rankings(queries, depth=_FUSED_DEPTH, filters=())
        own = set().union(*(self._own(queries, run) for run in rankings))
        cleaned = [without_own(run, own) for run in rankings]
        tuned = tune_weights(cleaned, qrels, fusion=self._fusion)
        self.dense_weight = tuned.weights[0]
        return tuned

    def close(self) -> None:
        """Close the connection to a database; nothing for a folder."""
        close = getattr(self.index, "close", None)
        if close is not None:
            close()

    def _dense(self, queries: Sequence[Query], *, depth: int, filters: Sequence[Filter]) -> Run:
        if self.encoder is None:
            raise ConfigError(
                "expected an encoder to search texts with, got none; open the index with one, as "
                'in dptdr.open_index("INDEX", "TASK")'
            )
        return search_queries(
            self.index, self.encoder, queries=queries, depth=depth, filters=filters
        )

    def _rankings(
        self, queries: Sequence[Query], *, depth: int, filters: Sequence[Filter]
    ) -> tuple[Run, Run]:
        assert self._words is not None
        depth = max(depth, _FUSED_DEPTH)
        dense = self._dense(queries, depth=depth, filters=filters)
        if not filters:
            return dense, self._words.search(queries, depth=depth)
        words = self._words.search(queries, depth=depth * _FILTERED_WORDS)
        return dense, {name: self._kept(hits, filters)[:depth] for name, hits in words.items()}

    def _kept(self, hits: Sequence[Hit], filters: Sequence[Filter]) -> list[Hit]:
        documents = self.index.documents([hit.passage_id for hit in hits])
        return [
            hit
            for hit, (_, metadata) in zip(hits, documents, strict=True)
            if all(condition.keeps(metadata) for condition in filters)
        ]

    def _own(self, queries: Sequence[Query], run: Run) -> set[str]:
        """Return the ids of the queries that found themselves."""
        met = [q for q in queries if any(hit.passage_id == q.id for hit in run[q.id])]
        documents = self.index.documents([query.id for query in met])
        return {
            query.id
            for query, (passage, _) in zip(met, documents, strict=True)
            if is_own_passage(query, passage)
        }

    def _contents(self, ids: Sequence[str]) -> list[str]:
        return [document.passage.content for document in self.index.documents(ids)]


def _conditions(given: Filters) -> Sequence[Filter]:
    if not isinstance(given, Mapping):
        return given
    return [
        Filter(field, (values,) if isinstance(values, str) else tuple(values))
        for field, values in given.items()
    ]
