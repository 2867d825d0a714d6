"""Rank passages, evaluate rankings and compare systems."""

import itertools
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dptdr.api.inputs import (
    AnyData,
    AnyPath,
    Phase,
    core_count,
    data_folder,
    optional_path,
    phases,
    set_threads,
)
from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.errors import ConfigError, EvaluationError
from dptdr.evaluation.compare import Comparison, compare_reports
from dptdr.evaluation.report import EvaluationReport
from dptdr.io.beir import BeirFolder
from dptdr.io.lines import describe
from dptdr.io.outputs import try_outputs
from dptdr.records import Qrels, Run
from dptdr.search.retriever import Filters, SearchIndex

if TYPE_CHECKING:
    from dptdr.model import Encoder


@checked
def retrieve(
    data: AnyData,
    system: "SearchIndex | Encoder | AnyPath",
    *,
    split: str = "test",
    id_prefix: str | None = None,
    depth: int = 100,
    limit: int | None = None,
    filters: Filters | None = None,
    keep_identical: bool = False,
    out: AnyPath | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    """Rank passages for all judged queries of a split.

    Args:
        data: A BEIR folder, or rows as for ``dptdr.train``.
        system: An index to search; or an encoder, ``bm25`` or ``bm25:LANGUAGE`` to rank the corpus
            of the data.
        split: Split of the queries.
        id_prefix: Instead, use all queries whose ids start with this prefix, judged or not.
        depth: Maximum passages per query.
        limit: Use only the first ``limit`` queries.
        filters: For an index: metadata field to accepted value or values.
        keep_identical: Let a query that is also a passage retrieve itself.
        out: Write a TREC run file here.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        threads: CPU threads; one per core by default.
        progress: Show progress on standard error.

    Returns:
        Query id to hits, best first.
    """
    from dptdr.search.ranking import judged_queries, prefixed_queries, rank

    check_counts(depth=depth, limit=limit)
    try_outputs(optional_path(out), inputs=[data])
    with data_folder(data, split=split) as place:
        folder = BeirFolder(place)
        judged: Qrels | None = None
        if id_prefix is not None:
            reject_unused_arguments({"split": split != "test"}, "with id_prefix")
            queries = prefixed_queries(folder, id_prefix, limit=limit)
        else:
            queries, judged = judged_queries(folder, split, limit=limit)
        if isinstance(system, SearchIndex):
            reject_unused_arguments(
                {"device": device != "auto", "threads": threads}, "with an index"
            )
            with phases(progress)("search"):
                run = system.run(
                    queries,
                    depth=depth,
                    filters=filters or (),
                    keep_identical=keep_identical,
                    qrels=judged,
                )
            name = system.name
        elif filters:
            raise ConfigError("filters: expected an index with metadata, got another system")
        else:
            set_threads(threads)
            ranking = rank(
                _system(system, device=device),
                folder,
                queries=queries,
                depth=depth,
                threads=threads or core_count(),
                keep_identical=keep_identical,
                qrels=judged,
                phase=phases(progress),
            )
            run, name = ranking.run, ranking.system
    _write(out, run, name=name)
    return run


@checked
def evaluate(
    data: AnyData,
    system: "Encoder | AnyPath | Run",
    *,
    split: str = "test",
    measures: Sequence[str] = (),
    depth: int | None = None,
    limit: int | None = None,
    keep_identical: bool = False,
    run_out: AnyPath | None = None,
    protocol: Literal["msmarco", "nq"] | None = None,
    passages: AnyPath | None = None,
    queries: AnyPath | None = None,
    matching: Literal["string", "regex"] = "string",
    strict: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Evaluate a system on the judged queries of a split; queries without hits score 0.

    Args:
        data: A BEIR folder, or rows as for ``dptdr.train``; with ``protocol``, the qrels file (for
            ``nq``, the question file).
        system: An encoder, ``bm25`` or ``bm25:LANGUAGE``, a run, or the path of a TREC run file.
        split: Split of the queries.
        measures: Measures in ir_measures notation; nDCG@10, RR@10 and R@100 by default.
        depth: Passages to rank per query; by default as required by the measures, at least 100.
        limit: Use only the first ``limit`` queries.
        keep_identical: Let a query that is also a passage retrieve itself.
        run_out: Write the ranking to this TREC run file.
        protocol: Evaluate a run file by the official rules of a benchmark.
        passages: For ``nq``: psgs_w100.tsv or corpus.jsonl with the passages of the run.
        queries: For ``nq``: queries.jsonl that maps ids to questions.
        matching: For ``nq``: whether answers are strings or regular expressions.
        strict: For ``nq``: reject answers that match every passage or none.
        batch_size: Maximum texts per batch; by default chosen from their lengths.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        dtype: Dtype of the backbone's weights.
        threads: CPU threads, or processes for ``nq``; one per core by default.
        progress: Show progress on standard error.

    Returns:
        The report, with means in ``measures`` and values in ``per_query``.
    """
    from dptdr.search.ranking import judged_queries, measure, needed_depth, rank

    check_counts(depth=depth, limit=limit, batch_size=batch_size, threads=threads)
    of_ranking = {
        "split": split != "test",
        "measures": bool(measures),
        "depth": depth,
        "limit": limit,
        "keep_identical": keep_identical,
        "run_out": run_out,
        "batch_size": batch_size,
        "device": device != "auto",
        "dtype": dtype != "float32",
    }
    of_answers = {
        "passages": passages,
        "queries": queries,
        "matching": matching != "string",
        "strict": strict,
    }
    if protocol is not None:
        reject_unused_arguments(of_ranking, f"with {protocol=}")
    if protocol != "nq":
        reject_unused_arguments(of_answers, f"with {protocol=}")
    try_outputs(optional_path(run_out), inputs=[data, system])
    if protocol is not None:
        return _by_protocol(
            protocol,
            qrels=data,
            run=system,
            passages=optional_path(passages),
            queries=optional_path(queries),
            matching=matching,
            strict=strict,
            workers=threads or core_count(),
            phase=phases(progress),
        )
    is_run = isinstance(system, dict) or (isinstance(system, Path | str) and Path(system).is_file())
    if is_run:
        reject_unused_arguments({"depth": depth, "threads": threads}, "with a run")
    if isinstance(system, dict):
        _check_run(system)
    depth = depth or needed_depth(measures)
    with data_folder(data, split=split) as place:
        folder = BeirFolder(place)
        asked, judged = judged_queries(folder, split, limit=limit)
        set_threads(threads)
        ranking = rank(
            _system(system, device=device, dtype=dtype, batch_size=batch_size),
            folder,
            queries=asked,
            depth=depth,
            threads=threads or core_count(),
            keep_identical=keep_identical,
            qrels=judged,
            phase=phases(progress),
        )
        report = measure(
            ranking,
            folder,
            split=split,
            qrels=judged,
            measures=measures,
            depth=None if is_run else depth,
            keep_identical=keep_identical,
        )
    _write(run_out, ranking.run, name=ranking.system)
    return report


@checked
def compare(
    reports: Sequence[EvaluationReport | AnyPath],
    *,
    measures: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare systems with a baseline, using paired tests over queries.

    Args:
        reports: Results of ``dptdr.evaluate``, or files from ``dptdr evaluate --json``; the
            baseline comes first.
        measures: Measures to compare; by default all measures in every report.
        seed: Seed of the randomisation test.

    Returns:
        Means, differences, confidence intervals and p-values.
    """
    read = [
        report if isinstance(report, EvaluationReport) else EvaluationReport.read(Path(report))
        for report in reports
    ]
    return compare_reports(read, measures=measures, seed=seed)


def _system(
    given: "Encoder | AnyPath | Run",
    *,
    device: str,
    dtype: str = "float32",
    batch_size: int | None = None,
) -> "Encoder | Path | Run | str":
    of_encoder = {"device": device != "auto", "dtype": dtype != "float32", "batch_size": batch_size}
    if isinstance(given, str) and given.partition(":")[0] == "bm25":
        reject_unused_arguments(of_encoder, "with BM25")
        return given
    if isinstance(given, dict):
        reject_unused_arguments(of_encoder, "with a run")
        return given
    if isinstance(given, Path | str) and Path(given).is_file():
        reject_unused_arguments(of_encoder, "with a run")
        return Path(given)
    from dptdr.api.task import loaded

    return loaded(given, device=device, dtype=dtype, batch_size=batch_size)


def _check_run(run: Run) -> None:
    """Reject a run whose hits are not ordered by finite scores."""
    for query_id, hits in run.items():
        scores: list[Any] = [hit[1] for hit in hits]
        numbers = all(isinstance(score, Real) and math.isfinite(score) for score in scores)
        if not numbers or any(one < other for one, other in itertools.pairwise(scores)):
            raise EvaluationError(
                f"query '{query_id}': expected hits with finite scores, best first, got "
                f"{describe(scores)}"
            )


def _write(path: AnyPath | None, run: Run, *, name: str) -> None:
    if path is not None:
        from dptdr.evaluation import write_run

        # Run files are whitespace-separated.
        write_run(Path(path), run, tag="_".join(name.split()))


def _by_protocol(
    protocol: Literal["msmarco", "nq"],
    *,
    qrels: object,
    run: object,
    passages: Path | None,
    queries: Path | None,
    matching: Literal["string", "regex"],
    strict: bool,
    workers: int,
    phase: Phase,
) -> EvaluationReport:
    from dptdr.evaluation.protocols.reports import measure_msmarco, measure_nq

    if not isinstance(run, Path | str) or not isinstance(qrels, Path | str):
        raise ConfigError(f"protocol {protocol}: expected the paths of a qrels file and a run file")
    if protocol == "msmarco":
        return measure_msmarco(qrels=Path(qrels), run=Path(run))
    if passages is None:
        raise ConfigError("protocol nq: expected the passages of the run, got none")
    with phase("match answers") as on_progress:
        return measure_nq(
            qrels=Path(qrels),
            run=Path(run),
            passages=passages,
            queries=queries,
            matching=matching,
            strict=strict,
            workers=workers,
            on_progress=on_progress,
        )
