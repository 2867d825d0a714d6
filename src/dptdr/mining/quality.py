"""Precision and recall of false-negative filtering against graded judgements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dptdr.errors import NegativesError
from dptdr.mining.candidates import find_candidates
from dptdr.mining.counting import MiningInputs
from dptdr.mining.false_negatives import reference_score, removal_reason
from dptdr.mining.pipeline import score_pairs
from dptdr.mining.settings import MiningSettings
from dptdr.records import Query


@dataclass(kw_only=True)
class RemovalQuality:
    """Counts of judged candidates by grade and outcome.

    Attributes:
        queries: Queries with a known positive and at least one judged candidate.
        dropped_relevant: False negatives removed.
        dropped_other: True negatives removed.
        kept_relevant: False negatives kept.
        kept_other: True negatives kept.
        by_grade: Grade to dropped and judged candidates.
    """

    queries: int = 0
    dropped_relevant: int = 0
    dropped_other: int = 0
    kept_relevant: int = 0
    kept_other: int = 0
    by_grade: dict[int, list[int]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return counts with precision and recall, ``None`` where undefined."""
        dropped = self.dropped_relevant + self.dropped_other
        relevant = self.dropped_relevant + self.kept_relevant
        judged = dropped + self.kept_relevant + self.kept_other
        return {
            "queries": self.queries,
            "judged_candidates": judged,
            "false_negatives": relevant,
            "dropped_relevant": self.dropped_relevant,
            "dropped_other": self.dropped_other,
            "precision": self.dropped_relevant / dropped if dropped else None,
            "recall": self.dropped_relevant / relevant if relevant else None,
            "share_of_false_negatives": relevant / judged if judged else None,
            "by_grade": {
                str(grade): {"dropped": counts[0], "judged": counts[1]}
                for grade, counts in sorted(self.by_grade.items())
            },
        }


def measure_removal(inputs: MiningInputs, settings: MiningSettings) -> RemovalQuality:
    """Hide all but one positive of each query, and count how many the bounds remove.

    The first passage with the highest grade is the known positive, as in training data with one
    positive per query. Every judged passage in a source's rank window is a candidate, relevant if
    its grade is at least the minimum grade of a positive.

    Args:
        inputs: Mining inputs with graded judgements.

    Raises:
        NegativesError: If there is no teacher, or no judged candidate.
    """
    if inputs.teacher is None:
        raise NegativesError("expected a teacher to measure filtering with, got none")
    quality = RemovalQuality()
    for block in inputs.blocks(settings.block_queries):
        _measure_block(block, inputs, settings=settings, quality=quality)
    if quality.queries == 0:
        raise NegativesError(
            "cannot measure filtering, as no candidate is judged; use a split with several judged "
            "passages per query that the sources rank"
        )
    return quality


def _measure_block(
    block: Sequence[Query],
    inputs: MiningInputs,
    *,
    settings: MiningSettings,
    quality: RemovalQuality,
) -> None:
    known: list[tuple[Query, int]] = []
    judged: list[list[tuple[int, int]]] = []
    for query in block:
        found = _judged_candidates(query, inputs, settings=settings)
        if found is not None:
            known.append((query, found[0]))
            judged.append(found[1])
    assert inputs.teacher is not None
    positives = score_pairs(inputs.teacher, known, rows=inputs.passages)
    pairs = [
        (query, row) for (query, _), rows in zip(known, judged, strict=True) for row, _ in rows
    ]
    scores = iter(score_pairs(inputs.teacher, pairs, rows=inputs.passages))
    for positive, rows in zip(positives, judged, strict=True):
        quality.queries += 1
        reference = reference_score([positive], which="mean")
        for (_, grade), score in zip(rows, scores, strict=False):
            reason = removal_reason(score, positive=reference, settings=settings.filtering)
            _count(quality, grade, relevant=grade >= settings.min_grade, dropped=reason is not None)


def _judged_candidates(
    query: Query, inputs: MiningInputs, *, settings: MiningSettings
) -> tuple[int, list[tuple[int, int]]] | None:
    """Return the known positive's row, and rows and grades of judged candidates."""
    found = inputs.judgements.of(query.id)
    assert found is not None
    rows, grades = found
    held = rows >= 0
    rows, grades = rows[held], grades[held]
    if not len(rows) or grades.max() < settings.min_grade:
        return None
    known = int(rows[int(np.argmax(grades))])
    candidates = find_candidates(
        query.id,
        positives=[known],
        runs=inputs.runs,
        sources=settings.sources,
        corpus=inputs.corpus,
        seed=settings.seed,
    )
    texts = {text for hits in candidates.sources.values() for text in hits.order}
    pairs = [
        (int(row), int(grade))
        for row, grade in zip(rows, grades, strict=True)
        if int(inputs.corpus.text_hashes[row]) in texts
    ]
    return (known, pairs) if pairs else None


def _count(quality: RemovalQuality, grade: int, *, relevant: bool, dropped: bool) -> None:
    counts = quality.by_grade.setdefault(grade, [0, 0])
    counts[0] += dropped
    counts[1] += 1
    if relevant:
        quality.dropped_relevant += dropped
        quality.kept_relevant += not dropped
    else:
        quality.dropped_other += dropped
        quality.kept_other += not dropped
