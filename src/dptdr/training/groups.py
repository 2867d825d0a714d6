"""Training groups from a data folder: queries, positives, mined negatives."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from dptdr.errors import TrainingError
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Qrels, Query, TrainingGroup


@runtime_checkable
class Groups(Protocol):
    """A sequence of training groups; implementations may read texts on demand."""

    def __len__(self) -> int:
        """Number of groups."""
        ...

    def __getitem__(self, item: int) -> TrainingGroup:
        """Return one group."""
        ...


class QrelsGroups:
    """Groups built from qrels, with queries of the same text merged.

    Args:
        qrels: Judgements; passages with grade ``min_grade`` or higher are positives.
        own: Own passages of queries that are also in the corpus.

    Raises:
        TrainingError: If no query has a positive.
    """

    def __init__(
        self,
        *,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
        qrels: Qrels,
        own: Mapping[str, str],
        min_grade: int = 1,
    ) -> None:
        self.own = own
        by_text: dict[str, tuple[str, dict[str, None]]] = {}
        self.without_positive = 0
        for query_id in sorted(qrels):
            positives = [p for p, grade in qrels[query_id].items() if grade >= min_grade]
            if not positives:
                self.without_positive += 1
                continue
            text = queries[query_id]
            _, found = by_text.setdefault(text, (query_id, {}))
            found.update(dict.fromkeys(positives))
        if not by_text:
            raise TrainingError(
                f"no query has a positive with grade {min_grade} or higher; check the train qrels "
                "with `dptdr data inspect`"
            )
        self._groups = [
            TrainingGroup(
                query_id=query_id,
                query=text,
                positives=tuple(passages[p] for p in positives),
                positive_ids=tuple(positives),
                own_passage=own.get(query_id, ""),
            )
            for text, (query_id, positives) in by_text.items()
        ]

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def __getitem__(self, item: int) -> TrainingGroup:
        """Return one group."""
        return self._groups[item]


def sample_texts(groups: Groups, count: int, *, seed: int) -> tuple[list[str], list[str]]:
    """Sample up to ``count`` queries with one positive each, for initialisation."""
    order = np.random.default_rng([7, seed]).permutation(len(groups))[:count]
    chosen = [groups[int(item)] for item in order]
    return [g.query for g in chosen], [g.positives[0] for g in chosen]


def held_out_split(qrels: Qrels, *, max_queries: int, seed: int) -> tuple[Qrels, Qrels]:
    """Split judged queries into (train, dev) for a data set without a dev split.

    A tenth of the queries becomes dev, at least 10 and at most ``max_queries``; with fewer than 20
    queries, half of them.

    Raises:
        TrainingError: If there are fewer than two judged queries.
    """
    ids = sorted(qrels)
    if len(ids) < 2:
        raise TrainingError(
            f"expected at least two judged train queries, one to train on and one to select the "
            f"checkpoint by, got {len(ids)}; add queries or a dev split"
        )
    count = min(max_queries, max(10, len(ids) // 10), len(ids) // 2)
    order = np.random.default_rng([11, seed]).permutation(len(ids))
    held = {ids[int(i)] for i in order[:count]}
    train = {q: qrels[q] for q in ids if q not in held}
    return train, {q: qrels[q] for q in ids if q in held}


class DevSet:
    """Dev queries, their judgements and a small corpus.

    Args:
        passages: The corpus: all judged passages plus randomly drawn ones.
        keep_identical: Allow a query that is also a passage to retrieve itself.
    """

    def __init__(
        self,
        *,
        queries: Sequence[Query],
        passages: Sequence[Passage],
        qrels: Qrels,
        keep_identical: bool = False,
    ) -> None:
        self.keep_identical = keep_identical
        self.queries = list(queries)
        self.passages = list(passages)
        self.qrels = qrels


def load_texts(
    folder: BeirFolder, *, query_ids: set[str], passage_ids: set[str]
) -> tuple[dict[str, str], dict[str, Passage]]:
    """Load the requested query and passage texts, reading each file once.

    Raises:
        TrainingError: If an id from the qrels is missing.
    """
    queries = {q.id: q.text for q in folder.queries() if q.id in query_ids}
    passages = {p.id: p for p in folder.passages() if p.id in passage_ids}
    for kind, wanted, have in (
        ("query", query_ids, queries.keys()),
        ("passage", passage_ids, passages.keys()),
    ):
        missing = sorted(wanted - have)
        if missing:
            raise TrainingError(
                f"{folder.path}: the qrels have {len(missing)} unknown {kind} ids, such as "
                f"'{missing[0]}'; run `dptdr data inspect`"
            )
    return queries, passages


def draw_dev_ids(
    qrels: Qrels, corpus_ids: Iterable[str], *, queries: int, passages: int, seed: int
) -> tuple[Qrels, set[str]]:
    """Draw dev queries and the ids of the dev corpus.

    Args:
        passages: Corpus size; judged passages are always included, even beyond it.

    Returns:
        Judgements of the drawn queries, and the passage ids.
    """
    generator = np.random.default_rng([13, seed])
    ids = sorted(q for q, judged in qrels.items() if any(grade > 0 for grade in judged.values()))
    chosen = [ids[int(i)] for i in generator.permutation(len(ids))[:queries]]
    kept: Qrels = {}
    wanted: dict[str, None] = {}
    for query_id in chosen:
        judged = qrels[query_id]
        # Keep only some positives of a query with very many, and drop the other judgements.
        taken = dict(sorted(judged.items(), key=lambda pair: -pair[1])[: max(1, passages // 10)])
        kept[query_id] = taken
        wanted.update(dict.fromkeys(taken))
    # Dropped positives must not be in the corpus unjudged.
    banned = {p for q in chosen for p, grade in qrels[q].items() if grade > 0 and p not in kept[q]}
    others = [p for p in corpus_ids if p not in wanted and p not in banned]
    room = max(0, passages - len(wanted))
    extra = generator.permutation(len(others))[:room]
    return kept, set(wanted) | {others[int(i)] for i in extra}
