"""``dptdr evaluate``: evaluate a task, a bare backbone, BM25 or an existing run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dptdr.cli.common import (
    BatchSize,
    Device,
    Dtype,
    Json,
    KeepIdentical,
    Threads,
    load_encoder,
    reject_unused_options,
    write_result,
)
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.evaluation.report import EvaluationReport

_EXACTLY_ONE = "--task, --backbone, --bm25 or --run"

PANELS = {"Official rules": ("protocol", "qrels", "passages", "queries", "matching", "strict")}


def command(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="BEIR folder; not needed with --protocol.")
    ] = None,
    task: Annotated[Path | None, typer.Option(help="Task bundle to evaluate.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Encoder to evaluate untuned: `minilm`, a folder or a hub name."),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="Evaluate BM25.")] = False,
    language: Annotated[
        str | None,
        typer.Option(help="Language of --bm25, such as german; detected by default."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="TREC run file to evaluate.")] = None,
    split: Annotated[str, typer.Option(help="Split of the queries: qrels/SPLIT.tsv.")] = "test",
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure in ir_measures notation; repeatable. Default: nDCG@10, RR@10, R@100."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passages per query. Default: as the measures require, at least 100.",
        ),
    ] = None,
    keep_identical: KeepIdentical = False,
    run_out: Annotated[
        Path | None, typer.Option(help="Write the ranking to this TREC run file.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first LIMIT queries.")
    ] = None,
    protocol: Annotated[
        Literal["msmarco", "nq"] | None,
        typer.Option(help="Evaluate --run by the official rules of msmarco or nq (DPR)."),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(help="Judgements for --protocol; for nq, the question file (.qa.csv)."),
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(help="For nq: the run's passages, psgs_w100.tsv or corpus.jsonl."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="For nq: queries.jsonl that maps ids to questions. "
            "Default: ids are the questions' line numbers in the file, from 0."
        ),
    ] = None,
    matching: Annotated[
        Literal["string", "regex"],
        typer.Option(help="For nq: how to match answers (regex for CuratedTREC)."),
    ] = "string",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="For nq: reject answers that match every passage or none."),
    ] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Evaluate one system, or an existing run, on the judged queries of a split.

    Queries without hits score 0.
    """
    try_outputs(json, run_out)
    reject_unused_options(
        context,
        without={
            "bm25": ("language",),
            "protocol": ("qrels", "passages", "queries", "matching", "strict"),
        },
        beside={
            "protocol": ("split", "measure", "depth", "keep_identical", "run_out", "limit"),
            "bm25": ("batch_size", "device", "dtype"),
            "run": ("batch_size", "device", "dtype"),
        },
    )
    if protocol == "msmarco":
        reject_unused_options(
            context, beside={"protocol": ("passages", "queries", "matching", "strict")}
        )
    system: Any
    if protocol is not None:
        _refuse_with_protocol(data=data, task=task, backbone=backbone, bm25=bm25)
        needed: dict[str, Any] = {"--qrels": qrels, "--run": run}
        if protocol == "nq":
            needed["--passages"] = passages
        absent = [name for name, value in needed.items() if value is None]
        if absent:
            raise ConfigError(f"--protocol {protocol} needs {', '.join(absent)}")
        source, system = qrels, run
    else:
        given = [task is not None, backbone is not None, bm25, run is not None]
        if data is None:
            raise ConfigError("expected a BEIR folder to evaluate on, or --protocol with --qrels")
        if sum(given) != 1:
            raise ConfigError(f"expected exactly one of {_EXACTLY_ONE}, got {sum(given)}")
        source, system = data, f"bm25:{language or 'auto'}" if bm25 else run
    import dptdr

    if system is None:
        system = load_encoder(task, backbone, device=device, dtype=dtype)
    assert source is not None
    report = dptdr.evaluate(
        source,
        system,
        split=split,
        measures=measure or [],
        depth=depth,
        limit=limit,
        run_out=run_out,
        protocol=protocol,
        passages=passages,
        queries=queries,
        matching=matching,
        strict=strict,
        keep_identical=keep_identical,
        batch_size=batch_size,
        threads=threads,
    )
    write_result(json, report.as_json(), said=_table(report))


def _refuse_with_protocol(
    *, data: Path | None, task: Path | None, backbone: str | None, bm25: bool
) -> None:
    given = {"DATA": data, "--task": task, "--backbone": backbone, "--bm25": bm25 or None}
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ConfigError(
            f"--protocol measures a finished run: give --run and --qrels, not {', '.join(extra)} "
            "(`dptdr evaluate DATA ... --run-out F` writes a run)"
        )


def _table(report: "EvaluationReport") -> str:
    from dptdr.evaluation.comparison_report import markdown_table

    where = f"{report.data}, {report.split}" if report.split else report.data
    rows = [["system", "queries", *report.measures]]
    values = [f"{value:.4f}" for value in report.measures.values()]
    rows.append([report.system, f"{report.queries:,}", *values])
    lines = [where, "", *markdown_table(rows)]
    if faults := report.details.get("faulty_answers"):
        lines += ["", f"answers scored as DPR does: {len(faults)}, such as {faults[0]}"]
    if report.details.get("relevant") == 0:
        lines += ["", "warning: no judgement of the split is above 0"]
    elif report.details.get("judged_hits") == 0:
        lines += ["", "warning: no passage of the ranking is judged; are its ids the data's?"]
    if report.details.get("unanswered"):
        lines += ["", f"queries without any passage, counted as 0: {report.details['unanswered']}"]
    if report.protocol == "msmarco":
        definitions = report.details["definitions"]
        lines += ["", *(f"{name}: {definitions[name]}" for name in report.measures)]
        lines.append(
            f"queries ranked: {report.details['ranked']:,} of {report.queries:,}; "
            f"deepest rank: {report.details['deepest_rank']:,}"
        )
    return "\n".join(lines)
