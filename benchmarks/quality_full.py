"""Write the page of quality over all passages: results/quality-full.md and its plot.

``python benchmarks/quality_full.py`` reads results/quality-full.jsonl, whose cells were measured
once on a card that trained many at a time; what the page says of other lines than these stays as it
is. ``part`` says what a line is: ``final`` (test, on the card), ``processor`` and ``bm25`` (test).
Values per query are means over the seeds of a row, in the line of the first seed.
"""

import statistics
from collections import defaultdict
from typing import Any

import numpy as np

import _lib
from _lib import weighted_p

PLOT = _lib.ROOT / "docs" / "images" / "budget.png"
SETS = (
    *("banking77", "scifact", "tldr", "squad-open", "python-code"),
    *("medquad", "nq-oracle", "msmarco-dl", "python-api"),
)
# Steps that take as long as 150 of full fine-tuning, by results/training.md (.58 to .66).
LONGER = 240
VARIANTS_ON = ("banking77", "scifact", "tldr", "squad-open", "python-code")
Rows = dict[str, dict[str, list[dict[str, Any]]]]
"""Records of all seeds by row and set."""

REFERENCE = "full, 150"
DEFAULT_RATE = 0.1
NAMES = {
    "bm25": "BM25",
    "bare": "bare backbone",
    REFERENCE: "full fine-tuning, 150 steps",
    "lora, 150": "LoRA (rank 8), 150 steps",
    "deep-prompt, 150": "deep prompt, 150 steps",
    f"deep-prompt, {LONGER}": f"deep prompt, {LONGER} steps",
    "deep-prompt, mined negatives": "deep prompt, 150 steps, mined negatives",
    "full, mined negatives": "full fine-tuning, 150 steps, mined negatives",
    "bitfit 0.001": "BitFit 1e-3, 150 steps",
    "bitfit 0.003": "BitFit 3e-3, 150 steps",
    "shallow-prompt 0.01": "shallow prompt 1e-2, 150 steps",
    "shallow-prompt 0.03": "shallow prompt 3e-2, 150 steps",
}


def main() -> None:
    records = _lib.read_records(_lib.RESULTS / "quality-full.jsonl")
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        parts[record["part"]].append(record)
    rows: Rows = defaultdict(lambda: defaultdict(list))
    for record in parts["final"]:
        rows[record["label"]][record["set"]].append(record)
    # The point of 16 rows at the default rate: three sets from the card, two from a processor.
    at_default = [
        record
        for record in parts["final"]
        if record["label"] == "deep-prompt, 150"
        and record["seed"] == 0
        and record["learning_rate"] == DEFAULT_RATE
    ]
    for record in at_default + parts["processor"] + parts["bm25"]:
        label = "16 rows" if record in at_default else record["label"]
        rows[label][record["set"]].append(record)
    page = _lib.RESULTS / "quality-full.md"
    kept = _lib.kept_section(page, "## Learning rates that dev chose")
    lines = [*_lib.kept_words(page), "", *tests(rows), *against(rows), *kept]
    _lib.write_page(page, lines)
    plot(rows)


def mean_of(records: list[dict[str, Any]]) -> float:
    return statistics.fmean(record["measures"]["nDCG@10"] for record in records)


def per_query(records: list[dict[str, Any]]) -> np.ndarray:
    """Return each query's mean over seeds; the order is that of the sorted ids."""
    return np.array(records[0]["per_query"])


def tests(rows: Rows) -> list[str]:
    first = {name: rows["bare"][name][0] for name in SETS}
    sizes = [f"{n} ({r['queries']} q, {r['passages']} p)" for n, r in first.items()]
    lines = []
    for label, name in NAMES.items():
        found = rows[label]
        if any(n not in found for n in SETS):
            continue
        seeds = {len(found[n]) for n in SETS}
        cells = [_lib.spread([r["measures"]["nDCG@10"] for r in found[n]]) for n in SETS]
        mean = statistics.fmean(mean_of(found[n]) for n in SETS)
        few = statistics.fmean(mean_of(found[n]) for n in SETS if n != "msmarco-dl")
        trained = found[SETS[0]][0].get("trained_parameters", 0)
        lines.append(
            [name, f"{trained:,}", *cells, f"{mean:.4f}", f"{few:.4f}", "/".join(map(str, seeds))]
        )
    head = ["method", "trained", *sizes, "mean", "without msmarco-dl", "seeds"]
    return ["## Test", "", "nDCG@10; spread over seeds.", "", *_lib.table(head, lines), ""]


def against(rows: Rows) -> list[str]:
    pairs = [(label, REFERENCE) for label in NAMES if label not in ("bm25", "bare", REFERENCE)]
    pairs += [
        ("deep-prompt, mined negatives", "full, mined negatives"),
        ("deep-prompt, mined negatives", "deep-prompt, 150"),
    ]
    lines = []
    for label, other in pairs:
        if any(n not in rows[label] for n in SETS):
            continue
        cells, parts = [], []
        for name in SETS:
            apart = per_query(rows[label][name]) - per_query(rows[other][name])
            cells.append(f"{apart.mean():+.4f}{star(weighted_p(apart / len(apart)))}")
            parts.append(apart / len(apart) / len(SETS))
        joined = np.concatenate(parts)
        p = weighted_p(joined)
        lines.append([NAMES[label], NAMES[other], *cells, f"{joined.sum():+.4f}", f"{p:.4f}"])
    return [
        "## Differences",
        "",
        "Of nDCG@10, paired randomisation test over queries (each query's mean over seeds); * p < "
        ".05, ** p < .001. The mean weighs all sets alike.",
        "",
        *_lib.table(["method", "against", *SETS, "mean", "p"], lines),
        "",
    ]


def star(p: float) -> str:
    return "**" if p < 0.001 else "*" if p < 0.05 else ""


# --- parameter budget

BUDGET = {
    "deep prompt": [
        *((1, "1 rows"), (4, "4 rows"), (16, "16 rows"), (64, "64 rows"), (128, "128 rows"))
    ],
    "LoRA": [(1, "rank 1"), (4, "rank 4"), (32, "rank 32")],
}


def curve(rows: Rows, steps: list[tuple[int, str]]) -> list[tuple[str, int, list[float]]]:
    """Return label, trained parameters, and nDCG@10 by set, for what was measured."""
    found = []
    for _, label in steps:
        sets = rows.get(label, {})
        if all(name in sets for name in VARIANTS_ON):
            values = [mean_of(sets[name]) for name in VARIANTS_ON]
            found.append((label, sets[VARIANTS_ON[0]][0]["trained_parameters"], values))
    return found


def plot(rows: Rows) -> None:
    """Draw the mean of nDCG@10 against the trained parameters."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for kind, steps in BUDGET.items():
        found = curve(rows, steps)
        means = [float(np.mean(values)) for _, _, values in found]
        axes.plot([count for _, count, _ in found], means, "o-", label=kind)
        for (label, count, _), value in zip(found, means, strict=True):
            axes.annotate(label, (count, value), textcoords="offset points", xytext=(4, 5))
    for label, style in (("full, 150", "--"), ("bare", ":")):
        value = statistics.fmean(mean_of(rows[label][name]) for name in VARIANTS_ON)
        axes.axhline(value, linestyle=style, color="grey")
        axes.annotate(NAMES[label], (1.1e3, value), textcoords="offset points", xytext=(0, 3))
    axes.set_xscale("log")
    axes.set_xlim(1e3, 2e6)
    axes.margins(y=0.1)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("nDCG@10, mean of five sets")
    axes.legend()
    figure.savefig(PLOT, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
