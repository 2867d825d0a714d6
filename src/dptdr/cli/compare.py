"""``dptdr compare``: systems on the same queries, with paired tests."""

from pathlib import Path
from typing import Annotated

import typer

from dptdr.io.resume import try_outputs


def command(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Reports of `dptdr evaluate --json`, the baseline first, 2 or more."),
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(help="Measure to compare, may be repeated. Default: all the reports share."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the randomisation test.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the comparison to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a plot to this file.")] = None,
) -> None:
    """Compare systems with the first one: means, differences, p-values.

    Per measure: paired randomisation test (20,000 sign patterns, or all where fewer exist),
    t-test, 95 % bootstrap interval, and Holm's correction over the systems.
    """
    try_outputs(json, html, png)
    from dptdr.evaluation.compare import compare_reports
    from dptdr.evaluation.comparison_report import (
        comparison_table,
        plot_comparison,
        write_comparison_page,
    )
    from dptdr.evaluation.report import EvaluationReport
    from dptdr.io.atomic import write_json

    comparison = compare_reports(
        [EvaluationReport.read(path) for path in reports], measures=measure or None, seed=seed
    )
    typer.echo(comparison_table(comparison))
    if json is not None:
        write_json(json, comparison.as_json())
    if html is not None:
        write_comparison_page(html, comparison)
    if png is not None:
        plot_comparison(png, comparison)
