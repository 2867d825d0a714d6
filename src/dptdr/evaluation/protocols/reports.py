"""Reports by official protocols, from files to files."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dptdr.evaluation.protocols import dpr as nq
from dptdr.evaluation.protocols.msmarco import DEFINITIONS, evaluate_msmarco, read_ranks
from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint
from dptdr.io.atomic import sha256_file
from dptdr.io.qrels import read_qrels
from dptdr.io.runs import read_run


def measure_msmarco(*, qrels: Path, run: Path) -> EvaluationReport:
    """Measure a run file by the official MS MARCO rules.

    Args:
        qrels: The judgements.
        run: The ranking.

    Returns:
        The report.
    """
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
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Measure a run file by DPR's rules: a passage that holds an answer counts.

    Args:
        qrels: The question file.
        run: The ranking.
        passages: The passages that the run names.
        queries: Tells which id is which question; else ids are line numbers from 0.
        matching: Whether answers are texts or regular expressions.
        workers: Processes.
        on_progress: Called with (passages matched, passages).

    Returns:
        The report.
    """
    questions = nq.read_questions(qrels)
    answers = nq.prepare_questions(questions, matching=matching, path=qrels)
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
        },
    )
