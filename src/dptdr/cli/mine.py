"""``dptdr mine``: mine hard negatives from several sources, with filtering and provenance."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dptdr.cli.common import (
    Device,
    Dtype,
    Json,
    Overwrite,
    Threads,
    reject_unused_options,
    write_result,
)
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs

PANELS = {
    "False negatives": (
        *("teacher", "max_score", "absolute_margin", "relative_margin", "positive_score"),
        *("keep_scores", "judged_split"),
    )
}


def command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="BEIR folder.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or run:FILE; repeatable. "
            "Options may follow: ,range_min=10 ,num_negatives=30 "
            ",sampling=top|uniform|score ,name=X."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write.")],
    split: Annotated[
        str, typer.Option(help="Split whose judgements define the positives.")
    ] = "train",
    range_max: Annotated[int, typer.Option(min=1, help="Default range_max of the sources.")] = 200,
    num_negatives: Annotated[
        int, typer.Option(min=1, help="Default num_negatives of the sources.")
    ] = 30,
    min_grade: Annotated[int, typer.Option(min=1, help="Minimum grade of a positive.")] = 1,
    keep_identical: Annotated[
        bool,
        typer.Option(
            "--keep-identical", help="Let a query that is also a passage be its own negative."
        ),
    ] = False,
    format: Annotated[
        Literal["dptdr", "tevatron"],
        typer.Option(help="Ids with provenance, or texts in Tevatron's format."),
    ] = "dptdr",
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Scores candidates, to drop false negatives: cross-encoder:NAME, task:FOLDER, "
            "backbone:NAME or file:RUN."
        ),
    ] = None,
    max_score: Annotated[
        float | None, typer.Option(help="Drop candidates whose teacher score is at least this.")
    ] = None,
    absolute_margin: Annotated[
        float | None,
        typer.Option(metavar="MARGIN", help="Drop candidates scoring above positive - MARGIN."),
    ] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option(
            metavar="MARGIN",
            help="Drop candidates scoring above positive x (1 - MARGIN); 0.05 keeps only those at "
            "or below 95 %.",
        ),
    ] = None,
    percent: Annotated[float | None, typer.Option(hidden=True)] = None,
    positive_score: Annotated[
        Literal["min", "mean", "max"],
        typer.Option(help="Which score to use if a query has several positives."),
    ] = "mean",
    keep_scores: Annotated[
        bool,
        typer.Option(
            "--keep-scores", help="Drop nothing; write the teacher's scores, for distillation."
        ),
    ] = False,
    judged_split: Annotated[
        str | None,
        typer.Option(help="Measure precision and recall of the filter on this split."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep corpus vectors and the BM25 index in this folder, for later runs. "
            "Default: a temporary folder."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    overwrite: Overwrite = False,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md and report.png.")
    ] = None,
    json: Json = None,
) -> None:
    """Mine hard negatives from several sources, with filtering and provenance.

    Judged positives and passages with the same text are excluded. The result is determined by the
    inputs and the seed. Unfinished work is kept in OUT.partial; rerun the same command to resume.
    """
    try_outputs(json)
    try_outputs(report, folders=True)
    reject_unused_options(context, without={"teacher": ("positive_score", "judged_split")})
    if percent is not None:
        if relative_margin is not None:
            raise ConfigError("--relative-margin: expected it alone, got --percent as well")
        relative_margin = 1 - percent / 100
    import dptdr
    from dptdr.mining.report import mining_tables, write_mining_report

    found = dptdr.mine(
        data,
        out=out,
        sources=source,
        split=split,
        num_negatives=num_negatives,
        range_max=range_max,
        teacher=teacher,
        max_score=max_score,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        positive_score=positive_score,
        keep_scores=keep_scores,
        min_grade=min_grade,
        keep_identical=keep_identical,
        format=format,
        judged_split=judged_split,
        cache=cache,
        seed=seed,
        device=device,
        dtype=dtype,
        threads=threads,
        overwrite=overwrite,
    )
    write_result(json, found, said=mining_tables(found))
    if report is not None:
        write_mining_report(report, found)
