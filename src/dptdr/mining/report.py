"""Mining reports in JSON, Markdown and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dptdr.evaluation.comparison_report import markdown_table, save_figure
from dptdr.io.atomic import atomic_file, write_json
from dptdr.mining.settings import MiningSettings
from dptdr.mining.statistics import RANK_BOUNDS, Statistics, warnings_of

FORMAT = 1
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def mining_report(
    statistics: Statistics,
    settings: MiningSettings,
    *,
    teacher: str | None,
    removal: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build a mining report as JSON values.

    Args:
        statistics: Counts of the mining run.
        teacher: Name of the teacher, or ``None``.
        removal: Precision and recall of filtering on judged data, or ``None``.

    Returns:
        The report. Lengths and teacher scores are quantiles over a uniform sample of 2,000, and a
        source's own scores over one of 500. Ratios divide a negative's score by the positive's, if
        that is above 0.
    """
    scores = statistics.teacher.values()
    dropped = {
        name: {"total": sum(counts.dropped.values()), **counts.dropped}
        for name, counts in statistics.sources.items()
    }
    return {
        "format": FORMAT,
        "queries": statistics.queries,
        "queries_without_positive": statistics.without_positive,
        "queries_without_negative": statistics.without_negative,
        "negatives": statistics.negatives,
        "negatives_per_query": statistics.negatives / max(1, statistics.queries),
        "sources": {name: asdict(counts) for name, counts in statistics.sources.items()},
        "dropped": dropped,
        "overlap": _overlap(statistics),
        "rank_bounds": list(RANK_BOUNDS),
        "characters": {
            "negatives": quantiles(_floats(statistics.negative_characters.values())),
            "positives": quantiles(_floats(statistics.positive_characters.values())),
        },
        "teacher": teacher,
        "hardness": {
            "teacher_negatives": quantiles([score for score, _ in scores]),
            "teacher_positives": quantiles([positive for _, positive in scores]),
            "teacher_margin": quantiles([positive - score for score, positive in scores]),
            "teacher_share": quantiles(_shares(scores)),
            "source_share": {
                name: quantiles(_shares(statistics.source_scores[name].values()))
                if name in statistics.source_scores
                else None
                for name in statistics.sources
            },
            "above_positive": {
                name: counts.above_positive / counts.with_positive if counts.with_positive else None
                for name, counts in statistics.sources.items()
            },
        },
        "removal": dict(removal) if removal is not None else None,
        "dropped_examples": statistics.examples.values(),
        "warnings": warnings_of(statistics, settings),
        "settings": {**asdict(settings), "sources": [asdict(one) for one in settings.sources]},
    }


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return ``mean`` and ``p05`` to ``p95`` of a sample, ``None`` if it is empty."""
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    found = np.quantile(numbers, _QUANTILES)
    named = {f"p{round(100 * q):02d}": float(v) for q, v in zip(_QUANTILES, found, strict=True)}
    return {"mean": float(numbers.mean()), **named}


def _shares(pairs: Sequence[Sequence[float]]) -> list[float]:
    return [score / positive for score, positive in pairs if positive > 0]


def _floats(values: Sequence[int]) -> list[float]:
    return [float(value) for value in values]


def mining_tables(report: Mapping[str, Any]) -> str:
    """Format a mining report as Markdown."""
    lines = [
        f"{report['negatives']:,} negatives for {report['queries']:,} queries, "
        f"{report['negatives_per_query']:.1f} each",
        "",
        *_source_table(report),
        "",
        "Negatives by rank in each source:",
        "",
        *_rank_table(report),
    ]
    if report["overlap"]:
        lines += ["", "Negatives shared by two sources:", "", *_overlap_table(report)]
    lines += ["", "Lengths and hardness:", "", *_quantile_table(report)]
    if report["removal"] is not None:
        lines += ["", *_removal_lines(report["removal"])]
    lines += [f"warning: {line}" for line in report["warnings"]]
    return "\n".join(lines)


def write_mining_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json``, ``report.md`` (with examples) and ``report.png`` into a folder."""
    write_json(folder / "report.json", report)
    text = "# Mined negatives\n\n" + mining_tables(report) + "\n"
    if report["dropped_examples"]:
        text += "\n## Dropped as false negatives\n"
        for example in report["dropped_examples"]:
            text += "\n" + "\n".join(_example_lines(example)) + "\n"
    with atomic_file(folder / "report.md") as handle:
        handle.write(text.encode("utf-8"))
    _plot(folder / "report.png", report)


def _source_table(report: Mapping[str, Any]) -> list[str]:
    header = ["source", "queries", "candidates", "positives", "dropped", "negatives"]
    rows = [[*header, "no other has", "above positive"]]
    for name, counts in report["sources"].items():
        above = report["hardness"]["above_positive"][name]
        rows.append(
            [
                name,
                f"{counts['queries']:,}",
                f"{counts['candidates']:,}",
                f"{counts['blocked']:,}",
                f"{report['dropped'][name]['total']:,}",
                f"{counts['negatives']:,}",
                f"{counts['alone']:,}",
                "-" if above is None else f"{above:.1%}",
            ]
        )
    return markdown_table(rows)


def _rank_table(report: Mapping[str, Any]) -> list[str]:
    labels = rank_labels(report["rank_bounds"])
    rows = [["source", *labels]]
    for name, counts in report["sources"].items():
        rows.append([name, *(f"{count:,}" for count in counts["ranks"])])
    return markdown_table(rows)


def rank_labels(bounds: Sequence[int]) -> list[str]:
    """Label each range of ranks, such as ``11-20``."""
    starts = [1, *(bound + 1 for bound in bounds)]
    labels = [
        str(start) if start == end else f"{start}-{end}"
        for start, end in zip(starts, bounds, strict=False)
    ]
    return [*labels, f"{starts[-1]}+"]


def _overlap(statistics: Statistics) -> list[dict[str, Any]]:
    pairs = []
    for pair, shared in sorted(statistics.overlap.items()):
        one, other = pair.split("|", 1)
        union = statistics.sources[one].negatives + statistics.sources[other].negatives - shared
        pairs.append({"sources": [one, other], "shared": shared, "jaccard": shared / union})
    return pairs


def _overlap_table(report: Mapping[str, Any]) -> list[str]:
    rows = [["sources", "shared", "of the union"]]
    for entry in report["overlap"]:
        name = " and ".join(entry["sources"])
        rows.append([name, f"{entry['shared']:,}", f"{entry['jaccard']:.1%}"])
    return markdown_table(rows)


def _quantile_table(report: Mapping[str, Any]) -> list[str]:
    entries = {f"characters, {name}": value for name, value in report["characters"].items()}
    for name in ("teacher_negatives", "teacher_positives", "teacher_margin"):
        entries[name.replace("_", ", ")] = report["hardness"][name]
    for name, value in report["hardness"]["source_share"].items():
        entries[f"score by the positive's, {name}"] = value
    rows = [["", "mean", *(f"{q:.0%}" for q in _QUANTILES)]]
    for name, value in entries.items():
        if value is not None:
            rows.append([name, *(f"{number:,.4g}" for number in value.values())])
    return markdown_table(rows)


def _removal_lines(removal: Mapping[str, Any]) -> list[str]:
    precision, recall = (
        "-" if removal[name] is None else f"{removal[name]:.3f}" for name in ("precision", "recall")
    )
    lines = [
        f"False-negative filtering on judged data: precision {precision}, recall {recall} "
        f"({removal['queries']:,} queries, {removal['judged_candidates']:,} judged candidates, "
        f"{removal['false_negatives']:,} of them false negatives)",
        "",
    ]
    rows = [["grade", "judged", "dropped"]]
    for grade, counts in removal["by_grade"].items():
        rows.append([grade, f"{counts['judged']:,}", f"{counts['dropped']:,}"])
    return [*lines, *markdown_table(rows)]


def _example_lines(example: Mapping[str, Any]) -> list[str]:
    ranks = ", ".join(f"{name} rank {rank}" for name, rank in example["sources"].items())
    return [
        f"- query {example['query_id']}: {_one_line(example['query'])}",
        f"  - positive ({example['positive_teacher']:.4g}): {_one_line(example['positive'])}",
        f"  - dropped {example['dropped_id']} ({example['teacher']:.4g}, {example['reason']}; "
        f"{ranks}): {_one_line(example['dropped'])}",
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plot(path: Path, report: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    (ranks, counts, overlap), (lengths, hardness, teacher) = figure.subplots(2, 3)
    _plot_ranks(ranks, report)
    _plot_counts(counts, report)
    _plot_overlap(overlap, report)
    lengths.set_title("length in characters")
    _plot_boxes(lengths, report["characters"])
    hardness.set_title("source's score divided by its best positive's")
    _plot_boxes(hardness, report["hardness"]["source_share"])
    teacher.set_title("teacher's score")
    keys = ("teacher_negatives", "teacher_positives", "teacher_margin")
    named = {key.removeprefix("teacher_"): report["hardness"][key] for key in keys}
    _plot_boxes(teacher, named)
    save_figure(path, figure)


def _plot_ranks(axes: Any, report: Mapping[str, Any]) -> None:
    labels = rank_labels(report["rank_bounds"])
    width = 0.8 / len(report["sources"])
    for number, (name, counts) in enumerate(report["sources"].items()):
        places = np.arange(len(labels)) + number * width
        axes.bar(places, counts["ranks"], width=width, label=name)
    axes.set_xticks(np.arange(len(labels)) + 0.4 - width / 2, labels, rotation=30)
    axes.set_xlabel("rank in the source")
    axes.set_ylabel("negatives")
    axes.legend(loc="upper right")


def _plot_counts(axes: Any, report: Mapping[str, Any]) -> None:
    names = list(report["sources"])
    groups = {
        "negatives": [report["sources"][name]["negatives"] for name in names],
        "no other has": [report["sources"][name]["alone"] for name in names],
        "dropped": [report["dropped"][name]["total"] for name in names],
    }
    for number, (label, values) in enumerate(groups.items()):
        axes.barh(np.arange(len(names)) + 0.27 * number, values, height=0.25, label=label)
    axes.set_yticks(np.arange(len(names)) + 0.27, names)
    axes.legend(loc="upper right")


def _plot_overlap(axes: Any, report: Mapping[str, Any]) -> None:
    names = list(report["sources"])
    shares = np.eye(len(names))
    for entry in report["overlap"]:
        one, other = (names.index(name) for name in entry["sources"])
        shares[one, other] = shares[other, one] = entry["jaccard"]
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.0%}", ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set_title("negatives ranked by both sources, as a share of the union")


def _plot_boxes(axes: Any, entries: Mapping[str, Mapping[str, float] | None]) -> None:
    """Draw quantiles as box plots with whiskers at 5 and 95 %."""
    boxes = [
        {
            "label": name,
            "whislo": value["p05"],
            "q1": value["p25"],
            "med": value["p50"],
            "q3": value["p75"],
            "whishi": value["p95"],
        }
        for name, value in entries.items()
        if value is not None
    ]
    if boxes:
        axes.bxp(boxes, showfliers=False)
    else:
        axes.text(0.5, 0.5, "no scores", ha="center", va="center", transform=axes.transAxes)
