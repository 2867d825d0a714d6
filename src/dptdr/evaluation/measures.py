"""Measures of a run against judgements, computed by ir_measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dptdr.errors import EvaluationError
from dptdr.io.trec import LARGEST_GRADE
from dptdr.records import Hit, Qrels

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measures of a run.

    Attributes:
        measures: Measure name to mean over all judged queries.
        per_query: Measure name to query id to value.
        queries: Number of judged queries, the denominator of every mean.
        unanswered: Judged queries that the run does not hold; each counts 0.
        judged_hits: Hits of the run that are judged, relevant or not.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    unanswered: int
    judged_hits: int


def parse_measures(names: Sequence[str]) -> dict[str, Any]:
    """Turn names into measures.

    Raises:
        EvaluationError: If there is no name, or some cannot be read; lists all of those.
    """
    import ir_measures

    if not names:
        raise EvaluationError(f"expected at least one measure, such as {DEFAULT_MEASURES[0]}")
    parsed: dict[str, Any] = {}
    wrong: list[str] = []
    for name in names:
        try:
            parsed[name] = ir_measures.parse_measure(name)
            ir_measures.evaluator([parsed[name]], {"q": {"p": 1}})
        # ir_measures validates with asserts, names, keys and syntax errors alike.
        except (
            NameError,
            ValueError,
            AssertionError,
            SyntaxError,
            TypeError,
            LookupError,
        ) as error:
            wrong.append(f"{name!r} ({' '.join(str(error).split())[:160].rstrip('.')})")
    if wrong:
        raise EvaluationError(
            f"ir_measures cannot compute {', '.join(wrong)}; write measures as it does, such as "
            "nDCG@10, RR@10, R@100, AP, P@5, Success@20"
        )
    return parsed


def evaluate(
    run: Mapping[str, Sequence[Hit]], qrels: Qrels, *, measures: Sequence[str] = DEFAULT_MEASURES
) -> Evaluation:
    """Measure a run against judgements.

    The mean is over the queries of the qrels: a judged query that the run does not hold counts 0
    (trec_eval with ``-c``), and so does a query without any positive judgement, which trec_eval
    keeps in its means too. Queries of the run that nobody judged do not count. The run's order
    decides; its scores are not looked at, so equal scores cannot be reordered.

    Args:
        qrels: Query id to passage id to grade; above 0 is relevant.

    Raises:
        EvaluationError: If a measure or a grade cannot be computed with, the qrels are empty, no
            judged query is in the run, or a query of the run lists a passage twice.

    Source:
        ir_measures (MacAvaney et al., ECIR 2022) over trec_eval. Differs: see above, nothing else.
    """
    import ir_measures

    objects = parse_measures(measures)
    if not qrels:
        raise EvaluationError("expected judged queries, the qrels hold none")
    _check_judgements(qrels)
    ranked = {query_id: run[query_id] for query_id in qrels if query_id in run}
    if not ranked:
        raise EvaluationError(
            f"none of the {len(qrels)} judged queries is among the {len(run)} of the run; "
            "give the qrels of the run's own queries"
        )
    scores = {query_id: _surrogate_scores(query_id, hits) for query_id, hits in ranked.items()}
    # Two names may mean one measure, such as RR@10 and MRR@10.
    values = {measure: dict.fromkeys(qrels, 0.0) for measure in objects.values()}
    for metric in ir_measures.iter_calc(list(values), qrels, scores):
        values[metric.measure][metric.query_id] = float(metric.value)
    per_query = {name: dict(values[measure]) for name, measure in objects.items()}
    means = {name: sum(values.values()) / len(qrels) for name, values in per_query.items()}
    return Evaluation(
        measures=means,
        per_query=per_query,
        queries=len(qrels),
        unanswered=len(qrels) - len(ranked),
        judged_hits=sum(
            hit.passage_id in qrels[query_id] for query_id, hits in ranked.items() for hit in hits
        ),
    )


def _check_judgements(qrels: Qrels) -> None:
    for query_id, grades in qrels.items():
        for passage_id, grade in grades.items():
            # trec_eval would take it for the end of the id.
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
    """Return scores that fall by one per rank: no ties, exact in single precision."""
    scores = {hit.passage_id: float(-rank) for rank, hit in enumerate(hits)}
    if any("\0" in passage_id for passage_id in scores):
        raise EvaluationError(f"query '{query_id}': expected passage ids without NUL in the run")
    if len(scores) != len(hits):
        raise EvaluationError(
            f"query '{query_id}' lists a passage twice: {len(hits)} hits, {len(scores)} passages"
        )
    return scores
