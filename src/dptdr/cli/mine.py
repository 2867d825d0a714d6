"""``dptdr mine``: hard negatives from any number of sources, cleaned, with provenance."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dptdr.mining.settings import (
    CleaningSettings,
    MiningSettings,
    check_cleaning,
    check_sources,
    parse_source,
)
from dptdr.mining.sources import TEACHERS, Machine


def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="bm25, backbone:NAME, task:FOLDER or run:FILE; may be repeated. Each may go on "
            "with ,ranks=10-200 ,quota=30 ,sampling=top|uniform|score ,name=X."
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
    json: Annotated[Path | None, typer.Option(help="Write the report to this JSON file.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep corpus vectors and the BM25 index in this folder, for further minings. "
            "Default: with the unfinished work, removed at the end."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where encoders run: cpu, cuda, cuda:1.")] = "cpu",
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
    from dptdr.cli.progress import progress
    from dptdr.io.atomic import write_json
    from dptdr.mining.report import mining_tables, write_mining_report

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
        teacher=teacher,
        judged_split=judged_split,
        cache=cache,
        machine=Machine(device=device, dtype=dtype, threads=threads or os.cpu_count() or 1),
    )
    found = mine_folder(request, show=progress)
    typer.echo(mining_tables(found))
    if json is not None:
        write_json(json, found)
    if report is not None:
        write_mining_report(report, found)


@dataclass(frozen=True, kw_only=True)
class MineRequest:
    """All that one mining is asked for; see the options of ``dptdr mine``."""

    data: Path
    out: Path
    settings: MiningSettings
    split: str = "train"
    teacher: str | None = None
    judged_split: str | None = None
    cache: Path | None = None
    machine: Machine = field(default_factory=Machine)


def mine_folder(request: MineRequest, *, show: Callable[[str], Any]) -> dict[str, Any]:
    """Mine negatives from a data folder.

    Args:
        request: What is asked for.
        show: Gives a context with a progress callable for a piece of work.

    Returns:
        The report.

    Raises:
        DataError: If the data or a run file is broken.
        NegativesError: If mining cannot go on; what was mined stays in ``OUT.partial``.
    """
    from dptdr.io.beir import BeirFolder
    from dptdr.io.store import PassageStore
    from dptdr.mining.counting import Material
    from dptdr.mining.pipeline import mine
    from dptdr.mining.quality import measure_removal
    from dptdr.mining.report import mining_report
    from dptdr.mining.sources import open_workshop

    folder = BeirFolder(request.data)
    work = request.out.with_name(request.out.name + ".partial")
    cache = request.cache or work / "cache"
    shop = open_workshop(
        folder, split=request.split, work=work, cache=cache, machine=request.machine, show=show
    )
    teacher = shop.teacher(request.teacher) if request.teacher is not None else None
    sources = request.settings.sources
    material = Material(
        queries=folder.queries,
        judgements=shop.judgements,
        corpus=shop.corpus,
        passages=PassageStore(folder),
        runs=shop.runs(sources, split=request.split),
        teacher=teacher,
    )
    removal = None
    if request.judged_split is not None:
        judged = open_workshop(
            folder,
            split=request.judged_split,
            work=work,
            cache=cache,
            machine=request.machine,
            show=show,
            corpus=shop.corpus,
        )
        judged.encoders.update(shop.encoders)
        removal = measure_removal(
            Material(
                queries=folder.queries,
                judgements=judged.judgements,
                corpus=shop.corpus,
                passages=material.passages,
                runs=judged.runs(sources, split=request.judged_split),
                teacher=teacher,
            ),
            request.settings,
        ).as_json()
    with show("mine") as on_progress:
        statistics = mine(
            material,
            request.settings,
            out=request.out,
            work=work / "mined",
            data_fingerprint=shop.fingerprint,
            on_progress=on_progress,
        )
    shutil.rmtree(work, ignore_errors=True)
    return mining_report(
        statistics,
        request.settings,
        teacher=None if teacher is None else teacher.name,
        removal=removal,
    )


def check_teacher(
    teacher: str | None,
    cleaning: CleaningSettings,
    *,
    keep_scores: bool,
    judged_split: str | None,
) -> None:
    """Refuse options that contradict one another; all problems at once.

    Args:
        teacher: The option ``--teacher``.
        cleaning: The bounds.
        keep_scores: The option ``--keep-scores``.
        judged_split: The option ``--judged-split``.

    Raises:
        ConfigError: If bounds have no teacher, a teacher has nothing to do, or the like.
    """
    from dptdr.errors import ConfigError

    check_cleaning(cleaning)
    bounds = "--drop-above, --margin or --percent"
    problems: list[str] = []
    if teacher is None and (cleaning.drops or keep_scores):
        problems.append(f"{bounds} and --keep-scores need a --teacher: {TEACHERS}")
    if teacher is not None and not (cleaning.drops or keep_scores):
        problems.append(f"--teacher needs a bound to drop by ({bounds}) or --keep-scores")
    if cleaning.drops and keep_scores:
        problems.append(f"--keep-scores drops nothing; leave it out, or {bounds}")
    if judged_split is not None and not cleaning.drops:
        problems.append(f"--judged-split measures a removal and needs {bounds}")
    if problems:
        raise ConfigError("; ".join(problems))
