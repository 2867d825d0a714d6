"""Draw a small evaluation set from a large folder, to compare systems in minutes."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Qrels, Query


class CappedSet(NamedTuple):
    """A consistent subset of queries, passages and judgements.

    ``queries_of_split`` is the number of queries in the split; ``dropped_for_room`` is the number
    of requested queries dropped because their judged passages did not fit.
    """

    queries: list[Query]
    passages: list[Passage]
    qrels: Qrels
    queries_of_split: int
    dropped_for_room: int


def capped_test(
    folder: BeirFolder, *, test_queries: int, passages: int, seed: int, split: str = "test"
) -> CappedSet:
    """Draw a seeded sample of a split: queries, all their judged passages, and random passages.

    Queries without a positive are skipped. Queries are added in random order until the judged
    passages of the next one do not fit; random passages fill the remaining space. Everything is
    returned in file order. Scores are higher over fewer passages.

    Raises:
        DataError: If a judged query or passage is not in the folder, or no query fits.
    """
    if min(test_queries, passages) < 1:
        raise ValueError(
            f"expected test_queries and passages of at least 1, got {test_queries} and {passages}"
        )
    judged = {
        query_id: grades
        for query_id, grades in folder.qrels(split).items()
        if max(grades.values()) > 0
    }
    order = sorted(judged)
    random.Random(f"queries {seed}").shuffle(order)
    kept, needed = _first_that_fit(order[:test_queries], judged, passages=passages)
    if not kept:
        raise DataError(
            f"no queries of split '{split}' fit: none has a positive, or the first one has more "
            f"than {passages} judged passages",
            path=folder.qrels_path(split),
        )
    ids = [passage.id for passage in folder.passages()]
    unknown = needed.difference(ids)
    if unknown:
        raise DataError(
            f"judgements of {len(unknown)} unknown passages, such as '{min(unknown)}'; "
            "`dptdr data inspect` lists them",
            path=folder.qrels_path(split),
        )
    chosen = needed | _others(ids, needed, count=passages - len(needed), seed=seed)
    texts = {query.id: query for query in folder.queries() if query.id in kept}
    missing = [query_id for query_id in kept if query_id not in texts]
    if missing:
        raise DataError(
            f"judgement of unknown query '{missing[0]}', which is not in queries.jsonl",
            path=folder.qrels_path(split),
        )
    return CappedSet(
        queries=list(texts.values()),
        passages=_first_of_each(folder, chosen),
        qrels={query_id: judged[query_id] for query_id in texts},
        queries_of_split=len(judged),
        dropped_for_room=min(test_queries, len(order)) - len(kept),
    )


def _first_that_fit(
    order: Sequence[str], judged: Qrels, *, passages: int
) -> tuple[set[str], set[str]]:
    """Return the queries that fit and their judged passages."""
    kept: set[str] = set()
    needed: set[str] = set()
    for query_id in order:
        # Continuing with smaller queries would favour queries with few judgements.
        if len(needed.union(judged[query_id])) > passages:
            break
        kept.add(query_id)
        needed.update(judged[query_id])
    return kept, needed


def _others(ids: Sequence[str], needed: set[str], *, count: int, seed: int) -> set[str]:
    free = sorted(set(ids).difference(needed))
    return set(random.Random(f"passages {seed}").sample(free, min(count, len(free))))


def _first_of_each(folder: BeirFolder, chosen: set[str]) -> list[Passage]:
    found: dict[str, Passage] = {}
    for passage in folder.passages():
        if passage.id in chosen:
            found.setdefault(passage.id, passage)
    return list(found.values())
