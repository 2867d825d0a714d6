"""``dptdr mine``: hard negatives from any number of sources, cleaned, with provenance."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from dptdr.cli.common import Device, Json, refuse_idle, write_result
from dptdr.io.resume import try_outputs
from dptdr.mining.settings import (
    CleaningSettings,
    MiningSettings,
    check_sources,
    parse_source,
)
from dptdr.mining.sources import TEACHERS, Machine


def command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="BEIR folder.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or run:FILE; may be repeated. "
            "Each may go on with ,ranks=10-200 ,quota=30 ,sampling=top|uniform|score ,name=X."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write.")],
    split: Annotated[str, typer.Option(help="Whose judgements are the positives.")] = "train",
    depth: Annotated[
        int, typer.Option(min=1, help="Ranks 1 to this are candidates where a source says none.")
    ] = 200,
    quota: Annotated[
        int, typer.Option(min=1, help="Negatives per query and source where a source says none.")
    ] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    min_grade: Annotated[int, typer.Option(help="Least grade of a positive.")] = 1,
    keep_identical: Annotated[
        bool,
        typer.Option("--keep-identical", help="Let a query that is a passage be its own negative."),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help=f"Scores candidates, to drop false negatives: {TEACHERS}.")
    ] = None,
    drop_above: Annotated[
        float | None, typer.Option(help="Drop candidates whose teacher score is at least this.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Drop candidates that score above the positive's score minus this."),
    ] = None,
    percent: Annotated[
        float | None,
        typer.Option(help="Drop candidates above this percentage (0-100) of the positive's score."),
    ] = None,
    positive_score: Annotated[
        Literal["min", "mean", "max"],
        typer.Option(help="Which score counts where a query has several positives."),
    ] = "mean",
    keep_scores: Annotated[
        bool,
        typer.Option("--keep-scores", help="Drop nothing; write the teacher's scores to distil."),
    ] = False,
    format: Annotated[
        Literal["dptdr", "tevatron"], typer.Option(help="Ids with provenance, or Tevatron's texts.")
    ] = "dptdr",
    judged_split: Annotated[
        str | None,
        typer.Option(
            help="Measure precision and recall of the removal on this split's graded judgements."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md and report.png.")
    ] = None,
    json: Json = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, whatever OUT and OUT.partial hold.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep corpus vectors and the BM25 index in this folder, for further minings. "
            "Default: with the unfinished work, removed at the end."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Number format: float32, bfloat16.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of BM25. Default: one per core.")
    ] = None,
) -> None:
    """Mine hard negatives: candidates of all sources, united, cleaned, with provenance.

    Judged positives and copies of their texts never appear. Same inputs and seed give the same
    file. A killed run goes on where it was when the same command is given again; until it is done,
    its work stands in OUT.partial.
    """
    from dptdr.api import resolve_device
    from dptdr.io.progress import progress
    from dptdr.mining.folder import MineRequest, check_teacher, mine_folder
    from dptdr.mining.report import mining_tables, write_mining_report

    refuse_idle(context, without={"teacher": ("positive_score", "judged_split")})
    cleaning = CleaningSettings(
        drop_above=drop_above, margin=margin, percent=percent, positive_score=positive_score
    )
    check_teacher(teacher, cleaning, keep_scores=keep_scores, judged_split=judged_split)
    sources = [parse_source(text, depth=depth, quota=quota) for text in source]
    check_sources(sources)
    request = MineRequest(
        data=data,
        out=out,
        split=split,
        settings=MiningSettings(
            sources=tuple(sources),
            cleaning=cleaning,
            seed=seed,
            min_grade=min_grade,
            output=format,
        ),
        keep_identical=keep_identical,
        teacher=teacher,
        judged_split=judged_split,
        cache=cache,
        machine=Machine(
            device=resolve_device(device), dtype=dtype, threads=threads or os.cpu_count() or 1
        ),
    )
    try_outputs(json)
    try_outputs(report, cache, folders=True)
    found = mine_folder(request, show=progress, overwrite=overwrite)
    write_result(json, found, said=mining_tables(found))
    if report is not None:
        write_mining_report(report, found)
