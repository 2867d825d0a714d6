"""Evaluate a run against judgements, using ir_measures."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dptdr.errors import EvaluationError
from dptdr.io.trec import LARGEST_GRADE
from dptdr.records import Hit, Qrels

_MAX_CUTOFF = 10**9

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measures of a run.

    Attributes:
        measures: Measure name to mean over all judged queries, or to the sum of a count.
        per_query: Measure name to query id to value.
        queries: Number of judged queries, the denominator of every mean.
        unanswered: Judged queries missing from the run; each counts 0.
        judged_hits: Hits with a judgement, relevant or not.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    unanswered: int
    judged_hits: int


def parse_measures(names: Sequence[str]) -> dict[str, Any]:
    """Parse measure names.

    Raises:
        EvaluationError: If there are no names, or some are invalid; lists all invalid names.
    """
    import ir_measures

    if not names:
        raise EvaluationError(f"expected at least one measure, such as {DEFAULT_MEASURES[0]}")
    parsed: dict[str, Any] = {}
    wrong: list[str] = []
    for name in names:
        try:
            parsed[name] = ir_measures.parse_measure(name)
            # trec_eval crashes for a cutoff of 0.
            if not 1 <= parsed[name].params.get("cutoff", 1) <= _MAX_CUTOFF:
                raise ValueError(f"expected a cutoff of 1 to {_MAX_CUTOFF:,}")
            ir_measures.calc_aggregate([parsed[name]], {"q": {"p": 1}}, {"q": {"p": 1.0}})
        # ir_measures reports invalid names with various exceptions, including assertions and, for
        # measures that it computes with other programs, those of subprocess.
        except (
            NameError,
            ValueError,
            AssertionError,
            ArithmeticError,
            SyntaxError,
            TypeError,
            LookupError,
            OSError,
            subprocess.SubprocessError,
        ) as error:
            wrong.append(f"{name!r} ({' '.join(str(error).split())[:160].rstrip('.')})")
    if wrong:
        raise EvaluationError(
            f"ir_measures cannot compute {', '.join(wrong)}; use names such as "
            "nDCG@10, RR@10, R@100, AP, P@5, Success@20"
        )
    return parsed


def evaluate(
    run: Mapping[str, Sequence[Hit]], qrels: Qrels, *, measures: Sequence[str] = DEFAULT_MEASURES
) -> Evaluation:
    """Evaluate a run against judgements.

    Means are over the queries of the qrels: a judged query missing from the run counts 0 (trec_eval
    with ``-c``), and so does a query without positives, which trec_eval includes too. Queries
    without judgements are ignored. Ranks are given by the run's order; its scores are ignored, so
    that ties are not reordered.

    Args:
        qrels: Query id to passage id to grade; above 0 is relevant.

    Raises:
        EvaluationError: If a measure or grade is invalid, the qrels are empty, no judged query is
            in the run, or a query lists a passage twice.

    Source:
        ir_measures (MacAvaney et al., ECIR 2022) over trec_eval. Differs only as described above.
    """
    import ir_measures

    objects = parse_measures(measures)
    if not qrels:
        raise EvaluationError("expected judged queries, got empty qrels")
    _check_judgements(qrels)
    ranked = {query_id: run[query_id] for query_id in qrels if query_id in run}
    if not ranked:
        raise EvaluationError(
            f"none of the {len(qrels)} judged queries is among the {len(run)} queries of the run; "
            "use qrels for the same queries"
        )
    scores = {query_id: _surrogate_scores(query_id, hits) for query_id, hits in ranked.items()}
    # Some measures have two names, such as RR@10 and MRR@10.
    values = {measure: dict.fromkeys(qrels, 0.0) for measure in objects.values()}
    for metric in ir_measures.iter_calc(list(values), qrels, scores):
        values[metric.measure][metric.query_id] = float(metric.value)
    per_query = {name: dict(values[measure]) for name, measure in objects.items()}
    totals = {name: sum(values.values()) for name, values in per_query.items()}
    return Evaluation(
        measures={
            # Counts, such as NumRet, are summed.
            name: total if _is_sum(objects[name]) else total / len(qrels)
            for name, total in totals.items()
        },
        per_query=per_query,
        queries=len(qrels),
        unanswered=len(qrels) - len(ranked),
        judged_hits=sum(
            hit.passage_id in qrels[query_id] for query_id, hits in ranked.items() for hit in hits
        ),
    )


def _is_sum(measure: Any) -> bool:
    from ir_measures.measures.base import SumAgg

    return isinstance(measure.aggregator(), SumAgg)


def _check_judgements(qrels: Qrels) -> None:
    for query_id, grades in qrels.items():
        for passage_id, grade in grades.items():
            # trec_eval treats it as the end of the id.
            if "\0" in passage_id or "\0" in query_id:
                raise EvaluationError(
                    f"query {query_id!r}, passage {passage_id!r}: expected ids without NUL"
                )
            if abs(grade) > LARGEST_GRADE:
                raise EvaluationError(
                    f"query '{query_id}', passage '{passage_id}': expected a grade from "
                    f"-{LARGEST_GRADE:,} to {LARGEST_GRADE:,}, got {grade}"
                )


def _surrogate_scores(query_id: str, hits: Sequence[Hit]) -> dict[str, float]:
    """Assign scores that decrease by one per rank: free of ties and exact in single precision."""
    scores = {hit.passage_id: float(-rank) for rank, hit in enumerate(hits)}
    if any("\0" in passage_id for passage_id in scores):
        raise EvaluationError(f"query '{query_id}': expected passage ids without NUL in the run")
    if len(scores) != len(hits):
        raise EvaluationError(
            f"query '{query_id}': expected distinct passages, got {len(hits)} hits with "
            f"{len(scores)} passages"
        )
    return scores
