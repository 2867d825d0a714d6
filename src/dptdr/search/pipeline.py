"""All stages of a search in a row: vectors, words, fusion, a second scorer."""

from collections.abc import Sequence
from typing import cast

from dptdr.errors import VectorsError
from dptdr.io.identical import is_own_passage, say_own, without_own
from dptdr.records import Hit, Qrels, Query, Run
from dptdr.search.hybrid import FUSIONS, Fusion, Tuned, fuse, tune_weights
from dptdr.search.index import Index, search_queries
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.rerank import Scorer, rerank
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Filter

_FUSED_DEPTH = 100
"""Hits that each ranking brings to a fusion at least."""

TEXT_ID = "\n"
"""Id of a query that has none: no passage can have it."""

_FILTERED_WORDS = 10
"""How many times more BM25 hits are fetched where a filter drops some of them afterwards."""


class Pipeline:
    """Searches an index with whatever stages are wanted.

    Args:
        fusion: How BM25 is merged in; None for vectors alone. Needs an index in a folder.
        dense_weight: Share of the vectors in a fusion, from 0 to 1.
        scorer: Ranks the best hits again; None for none.

    Raises:
        VectorsError: If BM25 is wanted and the index has none.
    """

    def __init__(
        self,
        index: Index,
        encoder: TextEncoder,
        *,
        fusion: Fusion | None = None,
        dense_weight: float = 0.5,
        scorer: Scorer | None = None,
        rerank_top: int = 50,
    ) -> None:
        self.index = index
        self.encoder = encoder
        self.fusion = fusion
        self.dense_weight = dense_weight
        self.scorer = scorer
        self.rerank_top = rerank_top
        self._lexical = None
        if fusion is not None:
            if not isinstance(index, LocalIndex):
                raise VectorsError(
                    f"BM25 lies beside an index in a folder; a {index.index_type} index has none"
                )
            self._lexical = index.lexical()

    def search(
        self,
        queries: Sequence[Query],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
        keep_identical: bool = False,
    ) -> Run:
        """Return the hits of every query after all stages.

        Args:
            filters: Conditions on metadata; all must hold.
            keep_identical: Whether a query that is a passage of the index may find itself.
        """
        wanted = max(depth, self.rerank_top) if self.scorer is not None else depth
        wanted += not keep_identical
        if self.fusion is None:
            run = search_queries(
                self.index, self.encoder, queries=queries, depth=wanted, filters=filters
            )
        else:
            weights = (self.dense_weight, 1 - self.dense_weight)
            run = fuse(
                self._rankings(queries, depth=wanted, filters=filters),
                fusion=self.fusion,
                weights=weights,
                depth=wanted,
            )
        if not keep_identical:
            own = self._own(queries, run)
            say_own(len(own))
            run = without_own(run, own, depth=wanted - 1)
        if self.scorer is not None:
            run = rerank(
                run,
                queries=queries,
                contents=self._contents,
                scorer=self.scorer,
                top=self.rerank_top,
            )
        return {name: hits[:depth] for name, hits in run.items()}

    def tune(self, queries: Sequence[Query], qrels: Qrels) -> Tuned:
        """Set the share of the vectors to what is best on judged queries.

        Raises:
            VectorsError: If nothing is merged.
        """
        if self.fusion is None:
            raise VectorsError("expected a fusion to tune the weight of, the search uses none")
        dense, words = self._rankings(queries, depth=_FUSED_DEPTH, filters=())
        own = self._own(queries, dense) | self._own(queries, words)
        rankings = (without_own(dense, own), without_own(words, own))
        tuned = tune_weights(rankings, qrels, fusion=self.fusion)
        self.dense_weight = tuned.weights[0]
        return tuned

    def _rankings(
        self, queries: Sequence[Query], *, depth: int, filters: Sequence[Filter]
    ) -> tuple[Run, Run]:
        assert self._lexical is not None
        depth = max(depth, _FUSED_DEPTH)
        dense = search_queries(
            self.index, self.encoder, queries=queries, depth=depth, filters=filters
        )
        if not filters:
            return dense, self._lexical.search(queries, depth=depth)
        words = self._lexical.search(queries, depth=depth * _FILTERED_WORDS)
        return dense, {name: self._kept(hits, filters)[:depth] for name, hits in words.items()}

    def _kept(self, hits: Sequence[Hit], filters: Sequence[Filter]) -> list[Hit]:
        documents = self.index.documents([hit.passage_id for hit in hits])
        return [
            hit
            for hit, (_, metadata) in zip(hits, documents, strict=True)
            if all(condition.keeps(metadata) for condition in filters)
        ]

    def _own(self, queries: Sequence[Query], run: Run) -> set[str]:
        """Return the ids of the queries that are passages and have found themselves."""
        met = [q for q in queries if any(hit.passage_id == q.id for hit in run[q.id])]
        documents = self.index.documents([query.id for query in met])
        return {
            query.id
            for query, (passage, _) in zip(met, documents, strict=True)
            if is_own_passage(query, passage)
        }

    def _contents(self, ids: Sequence[str]) -> list[str]:
        return [document.passage.content for document in self.index.documents(ids)]


def parse_fusion(text: str) -> Fusion:
    """Return the fusion of a name.

    Raises:
        VectorsError: If there is no such fusion.
    """
    if text not in FUSIONS:
        raise VectorsError(f"expected a fusion out of {', '.join(FUSIONS)}, got '{text}'")
    return cast(Fusion, text)
