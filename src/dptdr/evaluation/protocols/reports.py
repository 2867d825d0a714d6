"""Evaluation reports under official protocols."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dptdr.errors import DataError
from dptdr.evaluation.protocols import dpr as nq
from dptdr.evaluation.protocols.msmarco import DEFINITIONS, evaluate_msmarco, read_ranks
from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint
from dptdr.io.atomic import sha256_file
from dptdr.io.trec import read_qrels, read_run


def measure_msmarco(*, qrels: Path, run: Path) -> EvaluationReport:
    """Evaluate a run file under the official MS MARCO rules."""
    judged = read_qrels(qrels)
    result = evaluate_msmarco(read_ranks(run), judged)
    return EvaluationReport(
        system=run.stem,
        data=qrels.stem,
        split="",
        judgements_fingerprint=judgements_fingerprint(judged),
        protocol="msmarco",
        measures=result.measures,
        per_query=result.per_query,
        queries=result.queries,
        details={
            "run": str(run),
            "ranked": result.ranked,
            "deepest_rank": result.deepest_rank,
            "definitions": DEFINITIONS,
        },
    )


def measure_nq(
    *,
    qrels: Path,
    run: Path,
    passages: Path,
    queries: Path | None = None,
    matching: Literal["string", "regex"] = "string",
    strict: bool = False,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Evaluate a run file under DPR's rules: a passage containing an answer counts.

    Args:
        queries: Maps query ids to questions; without it, ids are line numbers from 0.
        strict: Reject answers that match every passage or none.

    Returns:
        The report; ``faulty_answers`` in its details lists answers that match every passage or
        none.

    Raises:
        DataError: If a file is malformed, or ``strict`` is set and there are faulty answers.
    """
    questions = nq.read_questions(qrels)
    answers, faults = nq.prepare_questions(questions, matching=matching)
    if strict and faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise DataError("; ".join(faults[:5]) + more, path=qrels, field="answers")
    ranking = read_run(run)
    ids = [str(number) for number in range(len(questions))]
    if queries is not None:
        ids = nq.match_query_ids(questions, queries=queries, ranked=ranking.keys())
    result = nq.evaluate_nq(
        ranking,
        answers,
        query_ids=ids,
        passages=nq.read_passage_texts(passages),
        workers=workers,
        on_progress=on_progress,
    )
    return EvaluationReport(
        system=run.stem,
        data=qrels.stem,
        split="",
        judgements_fingerprint=sha256_file(qrels),
        protocol="nq",
        measures=result.measures,
        per_query=result.per_query,
        queries=result.queries,
        details={
            "run": str(run),
            "matching": matching,
            "unanswered": result.unanswered,
            "passages_matched": result.passages_matched,
            "faulty_answers": faults,
        },
    )
