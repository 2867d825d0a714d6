"""``dptdr compare``: compare systems on the same queries with paired tests."""

from pathlib import Path
from typing import Annotated

import typer

from dptdr.cli.common import Json, write_result
from dptdr.io.outputs import try_outputs


def command(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Reports of `dptdr evaluate --json`, the baseline first, 2 or more."),
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(help="Measure to compare; repeatable. Default: all measures in every report."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the randomisation test.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a plot to this file.")] = None,
    json: Json = None,
) -> None:
    """Compare systems with a baseline: means, differences and p-values.

    Per measure: paired randomisation test (20,000 sign patterns, or all if there are fewer),
    t-test, 95 % bootstrap interval, and Holm's correction over the systems.
    """
    try_outputs(json, html, png)
    import dptdr
    from dptdr.evaluation.comparison_report import (
        comparison_table,
        plot_comparison,
        write_comparison_page,
    )

    comparison = dptdr.compare(reports, measures=measure or None, seed=seed)
    write_result(json, comparison.as_json(), said=comparison_table(comparison))
    if html is not None:
        write_comparison_page(html, comparison)
    if png is not None:
        plot_comparison(png, comparison)
