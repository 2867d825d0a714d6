"""Exclude queries that are also passages, as in ArguAna and Quora, from their own results."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from dptdr.errors import DataError
from dptdr.io.ids import normalised
from dptdr.records import Hit, Passage, Qrels, Query, Run


def is_own_passage(query: Query, passage: Passage) -> bool:
    """Check whether a query and a passage are the same document.

    As in BEIR's evaluation, equal ids are enough, except for numeric ids, which may coincide; then
    the texts must be equal too. So must they for ``NAME:12``, as joined folders have them.
    """
    if query.id != passage.id:
        return False
    if not query.id.rpartition(":")[2].isdecimal():
        return True
    text = normalised(query.text)
    return text in (normalised(passage.text), normalised(passage.content))


def own_passages(
    queries: Iterable[Query], passages: Iterable[Passage], *, qrels: Qrels | None = None
) -> dict[str, str]:
    """Find the queries that are also passages of the corpus, which is read once.

    Args:
        qrels: Judgements of the queries, if known.

    Raises:
        DataError: See :func:`check_not_judged`.
    """
    by_id = {query.id: query for query in queries}
    own = {}
    for passage in passages:
        query = by_id.get(passage.id)
        if query is not None and is_own_passage(query, passage):
            check_not_judged(query, passage, (qrels or {}).get(query.id, {}).get(passage.id, 0))
            own[passage.id] = passage.content
    return own


def check_not_judged(query: Query, passage: Passage, grade: int) -> None:
    """Refuse to exclude a passage that answers the query and only happens to have its id.

    Raises:
        DataError: If the passage has another text and is judged relevant.
    """
    same = normalised(query.text) in (normalised(passage.text), normalised(passage.content))
    if grade > 0 and not same:
        raise DataError(
            f"query '{query.id}' has the id of a passage with another text that is relevant to it, "
            "so they would be taken for one document; give them different ids, or use "
            "--keep-identical"
        )


def without_own(
    run: Mapping[str, Sequence[Hit]], own: Collection[str], *, depth: int | None = None
) -> Run:
    """Remove each query in ``own`` from its own hits.

    Args:
        run: Query id to hits; with one extra hit if a depth is given.
        depth: Hits to keep per query; None for all.
    """
    return {
        query_id: [hit for hit in hits if query_id not in own or hit.passage_id != query_id][:depth]
        for query_id, hits in run.items()
    }


def report_own_passages(count: int) -> None:
    """Report on standard error how many queries are excluded from their own results, if any."""
    if count:
        sys.stderr.write(
            f"{count:,} queries are also passages with the same id, and are excluded from their "
            "own hits and negatives; use --keep-identical to include them\n"
        )
