"""``dptdr data``: check, convert and create data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import Json, write_result
from dptdr.config.arguments import MAX_SEED
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.data.formats.writing import Conversion
    from dptdr.data.inspect import Inspection, TextStats
    from dptdr.io.beir import BeirCounts

app = typer.Typer(help="Check, convert and create data sets.", no_args_is_help=True)

PANELS = {
    "convert": {
        "Tables": (
            *("query_column", "positive_column", "negative_column", "title_column"),
            *("score_column", "clicks_column", "min_score", "split", "dev_share", "test_share"),
            "seed",
        )
    }
}


def _column(what: str) -> Any:
    return typer.Option(help=f"Column of the {what}.")


@app.command("inspect")
def inspect_command(
    data: Annotated[
        Path, typer.Argument(help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    ],
    json: Json = None,
) -> None:
    """Show the statistics of a BEIR folder and report all problems at once.

    Exits with code 2 if there are errors, and 0 if there are none or only warnings.
    """
    try_outputs(json)
    from dptdr.data.inspect import inspect_folder
    from dptdr.io.progress import progress

    with progress("inspect") as on_progress:
        found = inspect_folder(data, on_progress=on_progress)
    write_result(json, found.as_json(), said=_inspection_table(found))
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
    out: Annotated[Path, typer.Option(help="Folder to write; an existing data set is replaced.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed for splitting by source file.")
    ] = 0,
) -> None:
    """Build a sample data set from real text on this machine, without downloads."""
    from dptdr.data.sample import build_sample
    from dptdr.io.progress import progress

    with progress(f"sample {name}") as on_progress:
        counts = build_sample(name, out=out, seed=seed, on_progress=on_progress)
    typer.echo(_counts_line(out, counts))


@app.command("convert")
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder or file, or ir:NAME for ir_datasets "
            "(several over one corpus: ir:msmarco-passage/train,msmarco-passage/dev/small).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Data folder to write; an existing data set is replaced. "
            "For msmarco-triples: the training file."
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table (CSV, TSV, JSON lines, Parquet, or a folder of them or of `datasets`), "
            "documents (folder of Markdown, HTML, text), "
            "beir (folder), msmarco (folder of collection.tsv, queries.*.tsv, qrels.*.tsv), "
            "msmarco-top1000 (file), msmarco-triples (file of ids or texts), dpr (folder of "
            "psgs_w100.tsv, biencoder-*.json, *.qa.csv), tevatron (.jsonl file or folder), "
            "ir_datasets. Text files may be .gz. Default: detected from the files.",
        ),
    ] = None,
    query_column: Annotated[
        str | None, _column("query; default: anchor, query or question")
    ] = None,
    positive_column: Annotated[
        str | None, _column("relevant passage; default: positive, answer, passage or document")
    ] = None,
    negative_column: Annotated[
        list[str] | None,
        _column(
            "irrelevant passage; may be repeated; default: negative, negative_1, negative_2 ..."
        ),
    ] = None,
    title_column: Annotated[
        str | None, _column("relevant passage's title; default: no titles")
    ] = None,
    score_column: Annotated[str | None, _column("grade; default: score or label")] = None,
    clicks_column: Annotated[str | None, _column("number of clicks; default: clicks")] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Pairs with at least this score are relevant, all others are not."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a table not named after one. Default: train."),
    ] = None,
    dev_share: Annotated[float, typer.Option(help="Fraction of queries to hold out as dev.")] = 0.0,
    test_share: Annotated[
        float, typer.Option(help="Fraction of queries to hold out as test.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed for choosing them.")] = 0,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail, and write nothing, if a number of records differs from the published one "
            "or a judgement names a passage that is not there.",
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Convert other formats to a data folder, with counts and checksums in meta.json."""
    try_outputs(json)
    from dptdr.data.formats.columns import TableSettings
    from dptdr.data.formats.conversion import convert
    from dptdr.io.progress import progress

    table = TableSettings(
        query_column=query_column,
        positive_column=positive_column,
        negative_columns=tuple(negative_column or ()),
        title_column=title_column,
        score_column=score_column,
        clicks_column=clicks_column,
        min_score=min_score,
        split=split,
        dev_share=dev_share,
        test_share=test_share,
        seed=seed,
    )
    with progress("convert") as on_progress:
        done = convert(
            source, format=format, out=out, table=table, strict=strict, on_progress=on_progress
        )
    write_result(json, done.as_json(), said=_conversion_lines(done))


@app.command("join")
def join_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="BEIR folders, 2 or more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; an existing data set is replaced.")],
) -> None:
    """Merge data sets: ids become NAME:ID, splits with the same name are merged."""
    from dptdr.data.merge import join_folders

    typer.echo(_counts_line(out, join_folders(sources, out=out)))


@app.command("cap")
def cap_command(
    data: Annotated[Path, typer.Argument(help="BEIR folder.")],
    queries: Annotated[
        list[str], typer.Option(help="Maximum queries of a split as SPLIT=NUMBER; repeatable.")
    ],
    passages: Annotated[
        int, typer.Option(min=1, help="Maximum passages; every judged one of a kept query is kept.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; an existing data set is replaced.")],
    judged: Annotated[
        int,
        typer.Option(
            min=0, help="Maximum judgements kept of each query, one of them positive; 0 keeps all."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed for sampling.")] = 0,
) -> None:
    """Sample a small data set from a large one, for trials; measures will be higher."""
    from dptdr.data.merge import cap_folder

    counts = cap_folder(
        data, queries=_numbers_of(queries), passages=passages, seed=seed, out=out, judged=judged
    )
    typer.echo(_counts_line(out, counts))


def _numbers_of(queries: list[str]) -> dict[str, int]:
    pairs = [text.partition("=")[::2] for text in queries]
    wrong = [
        text
        for text, (name, count) in zip(queries, pairs, strict=True)
        if not name or not (count.isascii() and count.isdecimal())
    ]
    if wrong:
        raise ConfigError(f"expected --queries SPLIT=NUMBER, got {', '.join(wrong)}")
    splits = [name for name, _ in pairs]
    if twice := sorted({name for name in splits if splits.count(name) > 1}):
        raise ConfigError(f"--queries: expected each split once, got {', '.join(twice)} again")
    return {name: int(count) for name, count in pairs}


def _conversion_lines(done: "Conversion") -> str:
    from dptdr.data.formats.writing import unknown

    lines = [f"read as {done.read_as}"]
    if done.counts is None:
        lines.append(f"{done.out}: {done.groups or 0:,} training groups")
    else:
        lines += [_counts_line(done.out, done.counts), _titles_line(done.titled, done.counts)]
        if "table" in done.read_as and set(done.counts.judgements) == {"train"}:
            lines.append("no split to evaluate on; --test-share 0.2 holds one out")
    lines += [f"dropped: {count:,} {reason}" for reason, count in done.dropped.items()]
    lines += [
        f"training groups of {count:,} {split} queries: {done.out / f'negatives-{split}.jsonl'}"
        for split, count in done.negatives.items()
    ]
    if "train" in done.negatives:
        path = done.out / "negatives-train.jsonl"
        lines.append(f"to train with them: dptdr train {done.out} --negatives {path}")
    lines += [f"warning: {fault}" for fault in unknown(done)]
    for check in done.checks:
        same = check.expected == check.found
        lines.append(
            f"{check.what}: {check.found:,} records, as published"
            if same
            else f"warning: {check.what}: {check.found:,} records, published {check.expected:,}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])


def _titles_line(titled: int, counts: "BeirCounts") -> str:
    if titled == 0:
        return "titles: none"
    return "titles: all" if titled == counts.passages else f"titles: {titled:,} passages"


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
