"""The state of a query being mined, and its contribution to the statistics."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dptdr.io.ids import stable_hash
from dptdr.mining.candidates import Candidates, Choice
from dptdr.mining.corpus import CorpusTable, JudgementTable
from dptdr.mining.false_negatives import reference_score
from dptdr.mining.records import rounded
from dptdr.mining.runtable import RunTable
from dptdr.mining.settings import MiningSettings
from dptdr.mining.statistics import Statistics, rank_bucket
from dptdr.mining.teachers import Teacher
from dptdr.records import Passage, Query

_EXAMPLE_CHARACTERS = 300


@runtime_checkable
class PassageRows(Protocol):
    """Passages by corpus row, read on demand."""

    def at(self, row: int) -> Passage:
        """Return the passage in a row."""
        ...


@dataclass(frozen=True, kw_only=True)
class MiningInputs:
    """Inputs of a mining run.

    Attributes:
        queries: All queries, streamed; those without judgements are skipped.
        judgements: Determine the positives.
        corpus: Ids and text hashes.
        passages: Texts by row.
        runs: Source name to run.
        own: Ids of queries that are also passages, to be excluded from their own negatives.
        teacher: Scores pairs, or ``None``.
    """

    queries: Callable[[], Iterable[Query]]
    judgements: JudgementTable
    corpus: CorpusTable
    passages: PassageRows
    runs: Mapping[str, RunTable]
    own: Collection[str] = ()
    teacher: Teacher | None = None

    def blocks(self, size: int, *, skip: int = 0) -> Iterator[list[Query]]:
        """Yield the judged queries in blocks, without the first ``skip`` blocks."""
        judged = (q for q in self.queries() if self.judgements.of(q.id) is not None)
        left = itertools.islice(judged, skip * size, None)
        while block := list(itertools.islice(left, size)):
            yield block


@dataclass(kw_only=True)
class QueryState:
    """A query being mined: positives, candidates and teacher scores so far."""

    query: Query
    positives: list[int]
    candidates: Candidates
    positive_scores: list[float]

    def reference(self, settings: MiningSettings) -> float:
        """Return the positive's score that candidates are compared to."""
        return reference_score(self.positive_scores, which=settings.filtering.positive_score)


def count_dropped(
    work: QueryState,
    text: int,
    inputs: MiningInputs,
    *,
    settings: MiningSettings,
    statistics: Statistics,
) -> None:
    """Count a candidate removed by the teacher's bounds, and sample it as an example."""
    candidates = work.candidates
    reason = candidates.dropped[text]
    for name, hits in candidates.sources.items():
        if text in hits.order:
            dropped = statistics.sources[name].dropped
            dropped[reason] = dropped.get(reason, 0) + 1
    row = candidates.row_of(text)

    def _example() -> dict[str, object]:
        return {
            "query_id": work.query.id,
            "query": work.query.text,
            "positive": inputs.passages.at(work.positives[0]).content[:_EXAMPLE_CHARACTERS],
            "dropped_id": inputs.corpus.ids[row],
            "dropped": inputs.passages.at(row).content[:_EXAMPLE_CHARACTERS],
            "teacher": rounded(candidates.scores[text]),
            "positive_teacher": rounded(work.reference(settings)),
            "reason": reason,
            "sources": {name: entry.rank for name, entry in candidates.sources_of(text).items()},
        }

    statistics.examples.offer(f"{work.query.id}\t{row}", _example)


def count_negative(
    work: QueryState,
    negative: Choice,
    *,
    length: int,
    reference: float,
    statistics: Statistics,
) -> None:
    """Count a selected negative.

    Args:
        reference: The teacher's score of the positive; ignored without a teacher.
    """
    candidates, found = work.candidates, negative.sources
    statistics.negatives += 1
    key = stable_hash(f"{work.query.id}\t{negative.text}")
    for name, entry in found.items():
        counts = statistics.sources[name]
        counts.negatives += 1
        counts.alone += len(found) == 1
        counts.ranks[rank_bucket(entry.rank)] += 1
        best = candidates.sources[name].best_positive
        counts.with_positive += best > 0
        counts.above_positive += entry.rank < best
        if best:
            positive = candidates.sources[name].scores[best - 1]
            statistics.offer_source_score(name, key, (rounded(entry.score), rounded(positive)))
    for one, other in itertools.combinations(found, 2):
        pair = f"{one}|{other}"
        statistics.overlap[pair] = statistics.overlap.get(pair, 0) + 1
    statistics.negative_characters.offer_hashed(key, lambda: length)
    score = candidates.scores.get(negative.text)
    if score is not None:
        statistics.teacher.offer_hashed(key, lambda: [rounded(score), rounded(reference)])
