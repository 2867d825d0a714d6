"""Records exchanged between stages, as plain named tuples and dictionaries."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias


class Query(NamedTuple):
    """A query, as in ``queries.jsonl``."""

    id: str
    text: str


class Passage(NamedTuple):
    """A passage, as in ``corpus.jsonl``."""

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """Title and text joined by a space, as input for encoders and BM25."""
        return f"{self.title} {self.text}" if self.title else self.text


class Document(NamedTuple):
    """A passage with metadata for filters."""

    passage: Passage
    metadata: Mapping[str, Any] = {}


class Judgement(NamedTuple):
    """A line of qrels: the grade of a passage for a query (0 means not relevant)."""

    query_id: str
    passage_id: str
    grade: int


class Hit(NamedTuple):
    """A passage in a ranking; higher scores are better."""

    passage_id: str
    score: float


class TrainingGroup(NamedTuple):
    """A training query with positives and negatives.

    ``positive_scores`` and ``negative_scores`` are teacher scores, either empty or one per text.
    ``own_passage`` is the query itself as a passage, if it is one; it is never used as a negative.
    """

    query_id: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    own_passage: str = ""


Run: TypeAlias = dict[str, list[Hit]]
"""Query id to hits, best first."""

Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id to passage id to grade."""
