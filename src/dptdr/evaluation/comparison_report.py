"""Write comparisons as a Markdown table, an HTML page and a plot."""

import html
from pathlib import Path
from typing import Any

from dptdr.evaluation.compare import Comparison, Contrast
from dptdr.io.atomic import atomic_file


def comparison_table(comparison: Comparison) -> str:
    """Format a comparison as Markdown: means, then paired tests."""
    where = f"{comparison.data}, {comparison.split}" if comparison.split else comparison.data
    lines = [f"{where}: {comparison.queries:,} queries", ""]
    means = [["system", *comparison.measures]]
    for system in comparison.systems:
        values = comparison.means[system]
        means.append([system, *(f"{values[name]:.4f}" for name in comparison.measures)])
    lines += markdown_table(means)
    lines += ["", f"Against {comparison.systems[0]}:", ""]
    header = ["system", "measure", "difference", "95 % interval", "p", "p (Holm)", "p (t-test)"]
    rows = [[*header, "better", "worse"], *(_row(contrast) for contrast in comparison.contrasts)]
    lines += markdown_table(rows)
    lines += [
        "",
        "p: paired randomisation test, two-sided; Holm: adjusted over the systems of one measure; "
        "interval: bootstrap over queries; better, worse: queries.",
    ]
    return "\n".join(lines)


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Format an aligned Markdown table.

    Args:
        rows: Rows of equal length, the header first. The first column is left-aligned, the others
            right-aligned.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(rows[0]))]
    lines = []
    for row in cells:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return lines


def write_comparison_page(path: Path, comparison: Comparison) -> None:
    """Write a comparison as one self-contained HTML page, atomically."""
    title = html.escape(f"{comparison.data} {comparison.split}: {comparison.systems[0]}")
    table = html.escape(comparison_table(comparison))
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{title}</title><body><h1>{title}</h1><pre>{table}</pre>",
    ]
    for system, changes in comparison.largest_changes.items():
        parts.append(f"<h2>{html.escape(system)}: {html.escape(comparison.measures[0])}</h2>")
        for what, entries in changes.items():
            parts.append(f"<h3>queries that {what} most</h3><ul>")
            parts += [
                f"<li><code>{html.escape(entry['query'])}</code>: "
                f"{entry['baseline']:.4f} to {entry['value']:.4f}</li>"
                for entry in entries
            ]
            parts.append("</ul>")
    with atomic_file(path) as handle:
        handle.write("\n".join([*parts, "</body></html>\n"]).encode("utf-8"))


def plot_comparison(path: Path, comparison: Comparison) -> None:
    """Write a PNG of differences to the baseline with confidence intervals, atomically."""
    from matplotlib.figure import Figure

    count = len(comparison.contrasts)
    figure = Figure(figsize=(8, 1.4 + 0.35 * count), layout="constrained")
    axes: Any = figure.subplots()
    for row, contrast in enumerate(comparison.contrasts):
        test = contrast.test
        error = [
            [test.mean_difference - test.interval_low],
            [test.interval_high - test.mean_difference],
        ]
        colour = "tab:blue" if contrast.p_holm < 0.05 else "tab:gray"
        axes.errorbar(test.mean_difference, -row, xerr=error, fmt="o", color=colour, capsize=3)
    axes.axvline(0.0, color="black", linewidth=0.8)
    labels = [f"{contrast.system}, {contrast.measure}" for contrast in comparison.contrasts]
    axes.set_yticks([-row for row in range(count)], labels)
    axes.set_xlabel(
        f"difference to {comparison.systems[0]}, 95 % interval (blue: p < .05 after Holm)"
    )
    axes.set_title(f"{comparison.data} {comparison.split}, {comparison.queries:,} queries")
    save_figure(path, figure)


def save_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as a PNG with reproducible bytes, atomically."""
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=120, metadata={"Software": None})


def _row(contrast: Contrast) -> list[str]:
    test = contrast.test
    return [
        contrast.system,
        contrast.measure,
        f"{test.mean_difference:+.4f}",
        f"{test.interval_low:+.4f} to {test.interval_high:+.4f}",
        _p_value(test.p_randomisation),
        _p_value(contrast.p_holm),
        _p_value(test.p_t),
        f"{test.better:,}",
        f"{test.worse:,}",
    ]


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<.0001"
