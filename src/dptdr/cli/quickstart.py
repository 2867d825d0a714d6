"""``dptdr quickstart``: the main job end to end, on text that every Python installation holds."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.optimisation import Precision
from dptdr.config.training import TrainingConfig
from dptdr.io.atomic import write_json
from dptdr.io.progress import progress
from dptdr.io.resume import try_outputs

if TYPE_CHECKING:
    from dptdr.data.subsample import CappedSet
    from dptdr.evaluation import Evaluation
    from dptdr.model import Backbone, Encoder
    from dptdr.records import Qrels, Query, Run

TASKS = ("python-code", "python-api")


def command(
    out: Annotated[Path, typer.Option(help="Folder for data, tasks, indexes and reports.")] = Path(
        "quickstart"
    ),
    backbone: Annotated[str, typer.Option(help="The frozen encoder.")] = "minilm",
    steps: Annotated[int, typer.Option(help="Optimiser steps per task.")] = 100,
    test_queries: Annotated[int, typer.Option(help="Most test queries per task.")] = 500,
    passages: Annotated[
        int, typer.Option(help="Most passages that are searched, judged ones included.")
    ] = 800,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the table's figures to this file.")
    ] = None,
) -> None:
    """Tune two tasks on one frozen encoder, index, evaluate and search them; no download."""
    try_outputs(json_out)
    began = time.monotonic()
    from dptdr.model import Backbone

    encoder = Backbone.load(backbone)
    typer.echo(
        f"backbone {backbone}: {encoder.parameter_count:,} parameters, frozen, one for all tasks; "
        f"training in {_precision()}"
    )
    rows = [
        _task(
            name,
            out,
            backbone=encoder,
            config=_config(steps=steps, seed=seed),
            test_queries=test_queries,
            passages=passages,
        )
        for name in TASKS
    ]
    _print_table(rows)
    typer.echo(f"\ndone in {_clock(time.monotonic() - began)}; everything is in {out}/")
    _print_next(out)
    if json_out is not None:
        write_json(json_out, {"tasks": rows, "seconds": round(time.monotonic() - began, 1)})


def _config(*, steps: int, seed: int) -> TrainingConfig:
    # Shorter texts and a small dev set than by default: this shall take minutes on two cores.
    return TrainingConfig(
        max_steps=steps,
        seed=seed,
        precision=_precision(),
        # One dev measure, at the end: a hundred queries are too few to choose between checkpoints.
        eval_steps=0.0,
        dev_queries=100,
        dev_passages=200,
    )


def _precision() -> Precision:
    """Return bfloat16 where the processor computes in it (nearly twice as fast), else float32."""
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _task(
    name: str,
    out: Path,
    *,
    backbone: "Backbone",
    config: TrainingConfig,
    test_queries: int,
    passages: int,
) -> dict[str, Any]:
    """Go through all stages for one task and return its row of the table."""
    from dptdr.data.sample import build_sample
    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import evaluate, paired_test
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.model import Encoder, load_task
    from dptdr.search.bm25 import Bm25Index
    from dptdr.search.retrieve import retrieve

    began = time.monotonic()
    typer.echo(f"\n== {name}")
    data = out / "data" / name
    if not (data / "meta.json").is_file():
        with progress("reading sources") as show:
            build_sample(name, out=data, seed=config.seed, on_progress=show)
    folder = BeirFolder(data)
    test = capped_test(folder, test_queries=test_queries, passages=passages, seed=config.seed)
    searched = out / "data" / f"{name}-test"
    write_beir(
        searched,
        passages=test.passages,
        queries=test.queries,
        qrels={"test": test.qrels},
        meta={"from": name, "cap": f"{test_queries} queries, {passages} passages"},
    )
    task, seconds = _tune(folder, out / "tasks" / name, backbone=backbone, config=config)
    tuned = load_task(task, backbone=backbone)
    prompt_run = _indexed_run(tuned, searched, out / "indexes" / name, queries=test.queries)
    with progress("bare backbone") as show:
        bare_run = retrieve(
            Encoder(backbone),
            queries=test.queries,
            passages=test.passages,
            depth=100,
            on_progress=show,
        )
    bm25_run = Bm25Index.build(test.passages).search(test.queries, depth=100)
    runs = {"prompt": prompt_run, "backbone": bare_run, "bm25": bm25_run}
    measured = {system: evaluate(run, test.qrels) for system, run in runs.items()}
    for system, evaluation in measured.items():
        _report(
            evaluation,
            out / "reports" / f"{name}-{system}.json",
            system=system,
            data=searched.name,
            qrels=test.qrels,
        )
    bare, prompt = measured["backbone"], measured["prompt"]
    paired = paired_test(prompt.per_query["nDCG@10"], bare.per_query["nDCG@10"])
    _print_answers(test, bare=bare_run, tuned=prompt_run)
    return {
        "task": name,
        "passages": len(test.passages),
        "queries": len(test.queries),
        "BM25": measured["bm25"].measures["nDCG@10"],
        "backbone": bare.measures["nDCG@10"],
        "prompt": prompt.measures["nDCG@10"],
        "p": paired.p_randomisation,
        "bundle_bytes": sum(f.stat().st_size for f in task.iterdir() if f.is_file()),
        "training_seconds": round(seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def _tune(
    folder: Any, task: Path, *, backbone: "Backbone", config: TrainingConfig
) -> tuple[Path, float]:
    from dptdr.io.progress import TrainingProgress
    from dptdr.training.train import load_data, train_task

    with TrainingProgress(config.dev_measure) as watch:
        result = train_task(
            load_data(folder, config),
            task,
            backbone=backbone,
            method_name="deep-prompt",
            method_config=DeepPromptConfig(),
            config=config,
            overwrite=True,
            watch=watch,
        )
    assert result is not None  # One process trains here.
    return task, result.seconds


def _indexed_run(encoder: "Encoder", data: Path, index: Path, *, queries: "list[Query]") -> "Run":
    """Encode and index the passages as any later search will find them, and search them."""
    import shutil

    from dptdr.search.index import search_queries
    from dptdr.search.indexes.building import build_index
    from dptdr.search.vectors.encoding import encode_data

    vectors = index.parent / f"{index.name}.vectors"
    shutil.rmtree(vectors, ignore_errors=True)
    with progress("encoding") as show:
        folder = encode_data(encoder, data, out=vectors, on_progress=show)
    built, _ = build_index(folder, out=index, index_type="exact", overwrite=True)
    return search_queries(built, encoder, queries=queries, depth=100)


def _report(
    evaluation: "Evaluation", path: Path, *, system: str, data: str, qrels: "Qrels"
) -> None:
    """Write a report as `dptdr evaluate` does, so that `dptdr compare` can read it."""
    from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint

    EvaluationReport(
        system=system,
        data=data,
        split="test",
        judgements_fingerprint=judgements_fingerprint(qrels),
        protocol="ir_measures",
        measures=evaluation.measures,
        per_query=evaluation.per_query,
        queries=evaluation.queries,
    ).write(path)


def _print_answers(test: "CappedSet", *, bare: "Run", tuned: "Run") -> None:
    """Count first hits that are judged, and show one that the prompt gained and one it lost."""
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
