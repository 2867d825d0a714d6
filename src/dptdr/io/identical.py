"""Queries that are passages of the corpus, as in ArguAna and Quora, never find themselves."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from dptdr.io.ids import normalised
from dptdr.records import Hit, Passage, Query, Run


def is_own_passage(query: Query, passage: Passage) -> bool:
    """Return whether a query is this passage.

    They have one id, as in BEIR's evaluation. Ids that are numbers may be equal by chance: the
    texts have to be equal too.
    """
    if query.id != passage.id:
        return False
    if not query.id.isdecimal():
        return True
    text = normalised(query.text)
    return text in (normalised(passage.text), normalised(passage.content))


def own_passages(queries: Iterable[Query], passages: Iterable[Passage]) -> dict[str, str]:
    """Return the queries that are passages of the corpus.

    Args:
        passages: The corpus, read once.
    """
    by_id = {query.id: query for query in queries}
    return {
        passage.id: passage.content
        for passage in passages
        if (query := by_id.get(passage.id)) is not None and is_own_passage(query, passage)
    }


def without_own(
    run: Mapping[str, Sequence[Hit]], own: Collection[str], *, depth: int | None = None
) -> Run:
    """Return a run in which no query of ``own`` finds itself.

    Args:
        run: Query id to hits; one more than wanted where the depth is given.
        depth: Hits kept of each query; None for all.
    """
    return {
        query_id: [hit for hit in hits if query_id not in own or hit.passage_id != query_id][:depth]
        for query_id, hits in run.items()
    }


def say_own(count: int) -> None:
    """Say on standard error if some queries cannot find themselves."""
    if count:
        sys.stderr.write(
            f"{count:,} queries are passages under the same id: none is its own answer or "
            "negative; --keep-identical changes that\n"
        )
