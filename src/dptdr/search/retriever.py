"""An index with the encoder that asks it: texts in, passages out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dptdr.errors import ConfigError
from dptdr.records import Qrels, Query, Run
from dptdr.search.hybrid import Tuned
from dptdr.search.index import Index, check_encoder
from dptdr.search.indexes.types import Choice
from dptdr.search.pipeline import TEXT_ID, Pipeline, parse_fusion
from dptdr.search.rerank import Scorer
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Filter


class SearchResult(NamedTuple):
    """One passage that a search found; higher scores are better."""

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
        VectorsError: If BM25 is wanted and the index has none.
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
        self._pipeline: Pipeline | None = None
        fusion = None if hybrid is None else parse_fusion(hybrid)
        if encoder is not None:
            check_encoder(index.origin, encoder, where=where)
            self._pipeline = Pipeline(
                index,
                encoder,
                fusion=fusion,
                dense_weight=dense_weight,
                scorer=scorer,
                rerank_top=rerank_top,
            )

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.index.origin.encoder if self.encoder is None else self.encoder.name

    def __len__(self) -> int:
        """Number of passages."""
        return self.index.count

    def __enter__(self) -> "SearchIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        filters: Mapping[str, str | Sequence[str]] | Sequence[Filter] = (),
    ) -> list[SearchResult]:
        """Return the passages that answer a text, best first.

        Args:
            text: What to search for.
            k: Maximum number of passages.
            filters: Metadata field to the value, or values, that a passage may have in it.

        Returns:
            At most ``k`` passages with their texts.
        """
        hits = self.run([Query(TEXT_ID, text)], depth=k, filters=filters)[TEXT_ID]
        documents = self.index.documents([hit.passage_id for hit in hits])
        return [
            SearchResult(hit.passage_id, hit.score, passage.title, passage.text, metadata)
            for hit, (passage, metadata) in zip(hits, documents, strict=True)
        ]

    def run(
        self,
        queries: Sequence[Query],
        *,
        depth: int = 100,
        filters: Mapping[str, str | Sequence[str]] | Sequence[Filter] = (),
        keep_identical: bool = False,
    ) -> Run:
        """Return the hits of many queries, by query id.

        Args:
            queries: The queries.
            depth: Maximum number of hits for each.
            filters: As for ``search``.
            keep_identical: Whether a query that is a passage of the index may find itself.

        Returns:
            The run.
        """
        return self._ready().search(
            queries, depth=depth, filters=_filters(filters), keep_identical=keep_identical
        )

    def tune(self, queries: Sequence[Query], qrels: Qrels) -> Tuned:
        """Set ``dense_weight`` to what is best on judged queries.

        Args:
            queries: Dev queries.
            qrels: Their judgements.

        Returns:
            What was tried and reached.
        """
        return self._ready().tune(queries, qrels)

    @property
    def dense_weight(self) -> float:
        """Share of the vectors in a merge with BM25."""
        return self._ready().dense_weight

    def close(self) -> None:
        """Close the connection to a database; nothing for a folder."""
        close = getattr(self.index, "close", None)
        if close is not None:
            close()

    def _ready(self) -> Pipeline:
        if self._pipeline is None:
            raise ConfigError(
                "expected an encoder to search texts with, got none; open the index with one, as "
                'in dptdr.open_index("INDEX", "TASK")'
            )
        return self._pipeline


def _filters(
    given: Mapping[str, str | Sequence[str]] | Sequence[Filter],
) -> Sequence[Filter]:
    if not isinstance(given, Mapping):
        return given
    return [
        Filter(field, (values,) if isinstance(values, str) else tuple(values))
        for field, values in given.items()
    ]
