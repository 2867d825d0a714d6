"""``dptdr data``: check, convert and make data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dptdr.data.beir import BeirCounts
    from dptdr.data.inspection import Inspection, TextStats

app = typer.Typer(help="Check, convert and make data sets.", no_args_is_help=True)


@app.command("inspect")
def inspect_command(
    data: Annotated[
        Path, typer.Argument(help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    ],
    json: Annotated[
        Path | None, typer.Option(help="Write everything found to this JSON file as well.")
    ] = None,
) -> None:
    """Count a BEIR folder and report everything wrong with it at once.

    Exit code 2 if there are errors, 0 if there are none or only warnings.
    """
    from dptdr.cli.progress import progress
    from dptdr.data.inspection import inspect_folder
    from dptdr.files import write_json

    with progress("inspect") as on_progress:
        found = inspect_folder(data, on_progress=on_progress)
    typer.echo(_inspection_table(found))
    if json is not None:
        write_json(json, found.as_json())
    if found.errors:
        raise typer.Exit(2)


@app.command("sample")
def sample_command(
    name: Annotated[
        str,
        typer.Argument(
            help="python-code (docstring to source, over the standard library) or "
            "python-api (summary to documentation, over numpy, scipy, matplotlib, torch)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a data set there is replaced.")],
    seed: Annotated[int, typer.Option(help="Decides the split by source file.")] = 0,
) -> None:
    """Build a sample data set from text on this machine: real, and no download."""
    from dptdr.cli.progress import progress
    from dptdr.data.samples import build_sample

    with progress(f"sample {name}") as on_progress:
        counts = build_sample(name, out=out, seed=seed, on_progress=on_progress)
    typer.echo(_counts_line(out, counts))


def _counts_line(out: Path, counts: "BeirCounts") -> str:
    judged = ", ".join(f"{split} {count:,}" for split, count in counts.judgements.items())
    return (
        f"{out}: {counts.passages:,} passages, {counts.queries:,} queries, "
        f"judgements: {judged or 'none'}"
    )


def _inspection_table(found: "Inspection") -> str:
    rows = [
        ["", "count", "titled", "characters mean/median/95%/max", "words mean/median/95%/max"],
        _text_row("passages", found.passages),
        _text_row("queries", found.queries),
    ]
    lines = [found.path, "", *_aligned(rows)]
    if found.splits:
        split_rows = [["split", "queries", "judgements", "positive", "grade: judgements"]]
        for name, split in found.splits.items():
            grades = ", ".join(f"{grade}: {count:,}" for grade, count in split.grades.items())
            split_rows.append(
                [
                    name,
                    f"{split.queries:,}",
                    f"{split.judgements:,}",
                    f"{split.positives:,}",
                    grades,
                ]
            )
        lines += ["", *_aligned(split_rows)]
    lines.append("")
    for problem in found.problems:
        lines.append(f"{problem.severity}: {problem.kind} ({problem.count:,})")
        lines += [f"  {example}" for example in problem.examples]
        if problem.count > len(problem.examples):
            lines.append(f"  and {problem.count - len(problem.examples):,} more")
    lines.append(f"kinds of error: {len(found.errors)}, kinds of warning: {len(found.warnings)}")
    return "\n".join(lines)


def _text_row(name: str, stats: "TextStats") -> list[str]:
    units = [
        f"{unit.mean:,.1f} / {unit.median:,.0f} / {unit.percentile_95:,.0f} / {unit.max:,}"
        for unit in (stats.characters, stats.words)
    ]
    return [name, f"{stats.count:,}", f"{stats.titled:,}", *units]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
