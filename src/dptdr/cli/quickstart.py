"""``dptdr quickstart``: the whole workflow, on text included in every Python installation."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import Json
from dptdr.io.atomic import write_json
from dptdr.io.outputs import try_outputs
from dptdr.io.progress import progress

if TYPE_CHECKING:
    from dptdr.data.subsample import CappedSet
    from dptdr.model import Backbone
    from dptdr.records import Query, Run

TASKS = ("python-code", "python-api")


def command(
    out: Annotated[Path, typer.Option(help="Folder for data, tasks, indexes and reports.")] = Path(
        "quickstart"
    ),
    backbone: Annotated[str, typer.Option(help="The frozen encoder.")] = "minilm",
    steps: Annotated[int, typer.Option(help="Optimiser steps per task.")] = 100,
    test_queries: Annotated[
        int, typer.Option(help="Maximum number of test queries per task.")
    ] = 500,
    passages: Annotated[
        int, typer.Option(help="Maximum passages searched, judged ones included.")
    ] = 800,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    json: Json = None,
) -> None:
    """Train two tasks on a frozen encoder, then index, evaluate and search, without downloads."""
    try_outputs(json)
    try_outputs(out, folders=True)
    began = time.monotonic()
    with progress("load the encoder"):
        from dptdr.model import Backbone

        encoder = Backbone.load(backbone)
    typer.echo(
        f"backbone {backbone}: {encoder.parameter_count:,} parameters, frozen, one for all tasks; "
        f"training in {_precision()}"
    )
    settings = {
        # Shorter texts and a small dev set than by default: this must take minutes on two cores.
        "max_steps": steps,
        "seed": seed,
        "precision": _precision(),
        # One dev measure, at the end: a hundred queries are too few to choose between checkpoints.
        "eval_steps": 0.0,
        "dev_queries": 100,
        "dev_passages": 200,
    }
    sizes: dict[str, Any] = {"test_queries": test_queries, "passages": passages, "seed": seed}
    rows = [_task(name, out, backbone=encoder, settings=settings, sizes=sizes) for name in TASKS]
    _print_table(rows)
    typer.echo(f"\ndone in {_clock(time.monotonic() - began)}; everything is in {out}/")
    _print_next(out)
    figures = {"tasks": rows, "seconds": round(time.monotonic() - began, 1)}
    if json is not None:
        write_json(json, figures)


def _precision() -> str:
    """Return bfloat16 if the CPU supports it natively (nearly twice as fast), else float32."""
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _task(
    name: str, out: Path, *, backbone: "Backbone", settings: dict[str, Any], sizes: dict[str, Any]
) -> dict[str, Any]:
    """Run all stages for a task and return its table row."""
    import dptdr
    from dptdr.data.sample import build_sample
    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import paired_test
    from dptdr.io.beir import BeirFolder, write_beir

    began = time.monotonic()
    typer.echo(f"\n== {name}")
    data, searched = out / "data" / name, out / "data" / f"{name}-test"
    if not (data / "meta.json").is_file():
        with progress("read sources") as show:
            build_sample(name, out=data, seed=sizes["seed"], on_progress=show)
    test = capped_test(BeirFolder(data), **sizes)
    write_beir(
        searched,
        passages=test.passages,
        queries=test.queries,
        qrels={"test": test.qrels},
        meta={"from": name, "cap": sizes},
    )
    place = out / "tasks" / name
    task = dptdr.train(data, out=place, backbone=backbone, overwrite=True, **settings)
    index = dptdr.build_index(searched, task, out=out / "indexes" / name, overwrite=True)
    tuned = dptdr.retrieve(searched, index)
    bare = dptdr.retrieve(searched, dptdr.Encoder(backbone))
    reports = {
        "prompt": dptdr.evaluate(searched, tuned),
        "backbone": dptdr.evaluate(searched, bare),
        "bm25": dptdr.evaluate(searched, "bm25"),
    }
    for system, report in reports.items():
        replace(report, system=system).write(out / "reports" / f"{name}-{system}.json")
    _print_answers(test, bare=bare, tuned=tuned)
    values = {system: report.per_query["nDCG@10"] for system, report in reports.items()}
    means = {system: report.measures["nDCG@10"] for system, report in reports.items()}
    assert task.result is not None  # One process trains here.
    return {
        "task": name,
        "passages": len(test.passages),
        "queries": len(test.queries),
        "BM25": means["bm25"],
        "backbone": means["backbone"],
        "prompt": means["prompt"],
        "p": paired_test(values["prompt"], values["backbone"]).p_randomisation,
        "bundle_bytes": sum(f.stat().st_size for f in place.iterdir() if f.is_file()),
        "training_seconds": round(task.result.seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def _print_answers(test: "CappedSet", *, bare: "Run", tuned: "Run") -> None:
    """Count relevant top hits, and show one gained and one lost with the prompt."""
    texts = {passage.id: passage.content for passage in test.passages}

    def right(run: "Run", query: "Query") -> bool:
        return test.qrels[query.id].get(run[query.id][0].passage_id, 0) > 0

    gained = [q for q in test.queries if right(tuned, q) and not right(bare, q)]
    lost = [q for q in test.queries if right(bare, q) and not right(tuned, q)]
    before, after = (sum(right(run, q) for q in test.queries) for run in (bare, tuned))
    typer.echo(
        f"\nthe first hit is a judged passage (*) for {before} of {len(test.queries)} test queries "
        f"with the backbone,\nfor {after} with the prompt: {len(gained)} gained, {len(lost)} lost"
    )
    for query in (gained[:1] + lost[:1]) or test.queries[:1]:
        typer.echo(f"\n  query     {query.text[:100]}")
        for what, run in (("backbone", bare), ("prompt", tuned)):
            hit = run[query.id][0].passage_id
            mark = "*" if right(run, query) else " "
            typer.echo(f"  {what:8}{mark} {hit}  {' '.join(texts[hit].split())[:80]}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    typer.echo("\nnDCG@10 on held-out test queries (p: paired randomisation test, prompt against")
    typer.echo("backbone; time: training and all)")
    head = ("task", "passages", "queries", "BM25", "backbone", "prompt", "p", "bundle", "time")
    lines = [head]
    for row in rows:
        lines.append(
            (
                row["task"],
                f"{row['passages']:,}",
                str(row["queries"]),
                f"{row['BM25']:.3f}",
                f"{row['backbone']:.3f}",
                f"{row['prompt']:.3f}",
                f"{row['p']:.4f}",
                f"{row['bundle_bytes'] / 1e6:.2f} MB",
                f"{_clock(row['training_seconds'])} / {_clock(row['seconds'])}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _print_next(out: Path) -> None:
    task, index = out / "tasks" / TASKS[0], out / "indexes" / TASKS[0]
    typer.echo("try next:")
    typer.echo(f'  dptdr search {index} "read a zip archive" --task {task}')
    typer.echo(f"  dptdr evaluate {out / 'data' / TASKS[0]}-test --task {task}")
    typer.echo("  dptdr train YOUR_DATA --out YOUR_TASK    (your data: a BEIR folder)")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
