"""Rank passages, measure rankings, compare systems."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from dptdr.config.arguments import check_counts, checked
from dptdr.errors import ConfigError
from dptdr.evaluation.compare import Comparison, compare_reports
from dptdr.evaluation.report import EvaluationReport
from dptdr.io.beir import BeirFolder
from dptdr.io.resume import try_outputs
from dptdr.records import Run
from dptdr.search.retriever import Filters, SearchIndex

if TYPE_CHECKING:
    from dptdr.api.task import AnyEncoder
    from dptdr.model import Encoder


@checked
def retrieve(
    data: AnyData,
    system: "SearchIndex | AnyEncoder",
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
        system: An index to search, or an encoder, ``bm25`` or ``bm25:LANGUAGE`` to rank the data's
            own corpus with.
        split: Whose judged queries are asked.
        id_prefix: Ask the queries whose ids begin so instead, judged or not.
        depth: Maximum number of passages for each query.
        limit: Ask only the first so many queries.
        filters: With an index: metadata field to the value, or values, that a passage may have.
        keep_identical: Whether a query that is a passage of the data may find itself.
        out: Write a TREC run file here.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        threads: Processor threads; one for each core by default.
        progress: Show progress on standard error.

    Returns:
        Query id to hits, best first.
    """
    from dptdr.search.ranking import judged_queries, prefixed_queries, rank

    check_counts(depth=depth, limit=limit)
    try_outputs(optional_path(out), inputs=[data])
    with data_folder(data, split=split) as place:
        folder = BeirFolder(place)
        if id_prefix is not None:
            queries = prefixed_queries(folder, id_prefix, limit=limit)
        else:
            queries, _ = judged_queries(folder, split, limit=limit)
        if isinstance(system, SearchIndex):
            with phases(progress)("search"):
                run = system.run(
                    queries, depth=depth, filters=filters or (), keep_identical=keep_identical
                )
            name = system.name
        elif filters:
            raise ConfigError("filters: need an index that holds metadata, got another system")
        else:
            set_threads(threads)
            ranking = rank(
                _system(system, device=device),
                folder,
                queries=queries,
                depth=depth,
                threads=threads or core_count(),
                keep_identical=keep_identical,
                phase=phases(progress),
            )
            run, name = ranking.run, ranking.system
    _write(out, run, name=name)
    return run


@checked
def evaluate(
    data: AnyData,
    system: "AnyEncoder | Run",
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
    """Measure a system on the judged queries of a split; unanswered queries count as 0.

    Args:
        data: A BEIR folder, or rows as for ``dptdr.train``; with ``protocol`` the file of
            judgements (for ``nq`` of questions).
        system: An encoder, ``bm25`` or ``bm25:LANGUAGE``, a run, or the path of a TREC run file.
        split: Whose judged queries are asked.
        measures: As ir_measures names them; nDCG@10, RR@10 and R@100 by default.
        depth: Passages ranked for each query; what the measures need by default, at least 100.
        limit: Ask only the first so many queries.
        keep_identical: Whether a query that is a passage of the data may find itself.
        run_out: Write the ranking to this TREC run file.
        protocol: Measure a run file by official rules.
        passages: For ``nq``: psgs_w100.tsv or corpus.jsonl that the run names.
        queries: For ``nq``: queries.jsonl that tells which id is which question.
        matching: For ``nq``: answers are texts, or regular expressions.
        strict: For ``nq``: refuse answers that match every passage or none.
        batch_size: Maximum number of texts in a batch; chosen by their length by default.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        dtype: Number type of the backbone's weights.
        threads: Processor threads, or processes of ``nq``; one for each core by default.
        progress: Show progress on standard error.

    Returns:
        The report: ``measures`` to means, ``per_query`` to values.
    """
    from dptdr.search.ranking import judged_queries, measure, needed_depth, rank

    check_counts(depth=depth, limit=limit, batch_size=batch_size, threads=threads)
    of_ranking = {"measures": bool(measures), "depth": depth, "limit": limit, "run_out": run_out}
    of_answers = {
        "passages": passages,
        "queries": queries,
        "matching": matching != "string",
        "strict": strict,
    }
    if protocol is not None:
        _refuse_idle(of_ranking | {"keep_identical": keep_identical}, f"protocol={protocol!r}")
    if protocol != "nq":
        _refuse_idle(of_answers, f"protocol={protocol!r}")
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
    depth = depth or needed_depth(measures)
    with data_folder(data, split=split) as place:
        folder = BeirFolder(place)
        asked, judged = judged_queries(folder, split, limit=limit)
        if isinstance(system, dict):
            ranked: Encoder | Path | Run | str = system
        else:
            set_threads(threads)
            ranked = _system(system, device=device, dtype=dtype, batch_size=batch_size)
        ranking = rank(
            ranked,
            folder,
            queries=asked,
            depth=depth,
            threads=threads or core_count(),
            keep_identical=keep_identical,
            phase=phases(progress),
        )
        report = measure(ranking, folder, split=split, qrels=judged, measures=measures, depth=depth)
    _write(run_out, ranking.run, name=ranking.system)
    return report


@checked
def compare(
    reports: Sequence[EvaluationReport | AnyPath],
    *,
    measures: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare systems with the first one by paired tests, query by query.

    Args:
        reports: What ``dptdr.evaluate`` returned, or files of ``dptdr evaluate --json``; the
            baseline first.
        measures: Measures to compare; all that the reports share by default.
        seed: Seed of the randomisation test.

    Returns:
        Means, differences, intervals and p-values.
    """
    read = [
        report if isinstance(report, EvaluationReport) else EvaluationReport.read(Path(report))
        for report in reports
    ]
    return compare_reports(read, measures=measures, seed=seed)


def _system(
    given: "AnyEncoder", *, device: str, dtype: str = "float32", batch_size: int | None = None
) -> "Encoder | Path | str":
    if isinstance(given, str) and given.partition(":")[0] == "bm25":
        return given
    if isinstance(given, Path | str) and Path(given).is_file():
        return Path(given)
    from dptdr.api.task import loaded

    return loaded(given, device=device, dtype=dtype, batch_size=batch_size)


def _refuse_idle(given: Mapping[str, object], beside: str) -> None:
    idle = [name for name, value in given.items() if value not in (None, False)]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: no effect with {beside}")


def _write(path: AnyPath | None, run: Run, *, name: str) -> None:
    if path is not None:
        from dptdr.evaluation import write_run

        # A run file separates its fields by white space.
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
        raise ConfigError(f"protocol {protocol}: expected paths of judgements and of a run file")
    if protocol == "msmarco":
        return measure_msmarco(qrels=Path(qrels), run=Path(run))
    if passages is None:
        raise ConfigError("protocol nq: expected the passages that the run names, got none")
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
