"""Write the page of quality over all passages: results/quality-full.md and its plot.

``python benchmarks/quality_full.py`` reads results/quality-full.jsonl, whose cells were measured
once on a card that trained many at a time. ``part`` says what a line is: ``final`` (test, on the
card), ``processor`` and ``bm25`` (test), ``dev`` (what was tried), ``few`` (few queries). Values
per query are means over the seeds of a row, in the line of the first seed.
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
GRIDS: dict[str, tuple[float, ...]] = {
    "full": (3e-5, 1e-4, 2e-4, 4e-4),
    "deep-prompt": (3e-2, 1e-1, 2e-1, 4e-1),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2),
    "bitfit": (3e-4, 1e-3, 3e-3, 1e-2),
    "shallow-prompt": (3e-3, 1e-2, 3e-2, 1e-1),
    "peft-prefix": (1e-2, 3e-2, 1e-1, 3e-1),
}
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
    rows = grouped(parts["final"])
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
    lines = [INTRODUCTION, *tests(rows), *against(rows), *rates(rows), *elsewhere(rows)]
    lines += [*budget(rows), *lengths(rows), *few(parts["few"])]
    lines += [*grids(parts["dev"]), *variants(parts["dev"])]
    _lib.write_page(_lib.RESULTS / "quality-full.md", lines)
    plot(rows)


INTRODUCTION = f"""# Quality over all passages

All test queries over all passages of each set (not the capped sets of `results/quality.md`; the two
must not be compared). Encoder: MiniLM. Made by `python benchmarks/quality_full.py` from
`quality-full.jsonl`, whose cells were measured by a sweep on one NVIDIA H200 with 16 processor
cores, bfloat16, up to 15 trainings at a time: seconds are no measure here. Batch 32, in-batch
negatives unless said, texts cut at 64 and 96 tokens in training and at 256 in the test; the
checkpoint of three that is best on dev. 150 steps each; {LONGER} for prompts is equal time, by the
cost of a step on a processor (`results/training.md`). The learning rate of each set and method is
the best of four on 300 dev queries over 1,000 passages (one seed); rows that name a rate have that
one everywhere. msmarco-dl
trains on 33 queries, with grades of 2 and 3 as positives.

GPU time ended before everything was measured: what has no row was not reached (PEFT's prefix tuning
has four sets, query-only none).
"""


def grouped(records: list[dict[str, Any]]) -> Rows:
    rows: Rows = defaultdict(lambda: defaultdict(list))
    for record in records:
        rows[record["label"]][record["set"]].append(record)
    return rows


def mean_of(records: list[dict[str, Any]]) -> float:
    return statistics.fmean(record["measures"]["nDCG@10"] for record in records)


def per_query(records: list[dict[str, Any]]) -> np.ndarray:
    """Return each query's mean over seeds; the order is that of the sorted ids."""
    return np.array(records[0]["per_query"])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [*_lib.table(head, rows), ""]


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
    return ["## Test", "", "nDCG@10; spread over seeds.", "", *table(head, lines)]


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
        *table(["method", "against", *SETS, "mean", "p"], lines),
    ]


def star(p: float) -> str:
    return "**" if p < 0.001 else "*" if p < 0.05 else ""


def rates(rows: Rows) -> list[str]:
    labels = ["full, 150", "lora, 150", "deep-prompt, 150", f"deep-prompt, {LONGER}"]
    lines = [
        [NAMES[label], *(f"{rows[label][name][0]['learning_rate']:g}" for name in SETS)]
        for label in labels
    ]
    return ["## Learning rates that dev chose", "", *table(["method", *SETS], lines)]


def elsewhere(rows: Rows) -> list[str]:
    """Return the matrix of what tuning costs on other sets."""
    bare: dict[str, float] = {}
    for records in rows["bare"].values():
        bare |= records[0]["elsewhere"]
    lines, means = [], []
    for label in ("full, 150", "lora, 150", f"deep-prompt, {LONGER}"):
        lost = []
        for name in SETS:
            record = next(r for r in rows[label][name] if r["seed"] == 0)
            change = {o: value - bare[o] for o, value in record["elsewhere"].items()}
            cells = ["" if o == name else f"{change[o]:+.3f}" for o in SETS]
            own = statistics.fmean(change.values())
            lost.append(own)
            lines.append([NAMES[label], name, *cells, f"{own:+.4f}"])
        means.append(f"{NAMES[label]} {statistics.fmean(lost):+.4f}")
    return [
        "## Forgetting",
        "",
        "Change of nDCG@10 against the bare backbone on all other sets (at most 200 test queries "
        "over 1,000 passages), first seed. Mean: " + "; ".join(means) + ".",
        "",
        *table(["tuned by", "on", *SETS, "mean"], lines),
    ]


# --- parameter budget

BUDGET = {
    "deep prompt": [
        *((1, "1 rows"), (4, "4 rows"), (16, "16 rows"), (64, "64 rows"), (128, "128 rows")),
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


def budget(rows: Rows) -> list[str]:
    lines = []
    for kind, steps in BUDGET.items():
        for label, count, values in curve(rows, steps):
            share = f"{count / 22_565_376:.2%}"
            cells = [f"{value:.4f}" for value in values]
            lines.append([kind, label, f"{count:,}", share, *cells, f"{np.mean(values):.4f}"])
    return [
        "## Parameter budget",
        "",
        "150 steps, one seed, learning rate 1e-1 (prompts) and 3e-3 (LoRA); 16 rows on scifact and "
        "squad-open on a processor, all else on the card.",
        "",
        "![quality against trained parameters](../docs/images/budget.png)",
        "",
        *table(["method", "size", "trained", "share", *VARIANTS_ON, "mean"], lines),
    ]


def lengths(rows: Rows) -> list[str]:
    name = "squad-open"
    lines = [
        [what, f"{best_dev(r):.4f}", f"{r['measures']['nDCG@10']:.4f}"]
        for what, label in (("96", "16 rows"), ("256", "16 rows, 256 tokens"))
        for r in rows[label][name]
    ]
    return [
        "## Longer passages in training",
        "",
        "squad-open, 16 rows, 150 steps, rate .1, one seed, on a processor; tests read 256 tokens, "
        "dev as many as training. Training on 256 tokens took about twice the processor time.",
        "",
        *table(["tokens of a passage", "dev", "test"], lines),
    ]


def few(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        [
            r["label"],
            str(r.get("steps", "")),
            f"{r['learning_rate']:g}" if "learning_rate" in r else "",
            f"{r['measures']['nDCG@10']:.4f}",
            f"{r['measures']['R@100']:.4f}",
        ]
        for r in records
    ]
    return [
        "## Few queries",
        "",
        "msmarco-dl, 33 training queries, capped test set (43 queries, 4,000 passages), one seed, "
        "on a processor. Two ways of lowering a start's logits: along the queries' mean, or by "
        "least squares over the queries, which is `--start-offset`.",
        "",
        *table(["start", "steps", "rate", "nDCG@10", "R@100"], lines),
    ]


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


# --- on dev


def grids(tries: list[dict[str, Any]]) -> list[str]:
    lines = []
    for system in GRIDS:
        for steps in (150, LONGER):
            for rate in GRIDS[system]:
                tag = "" if steps == 150 else f", {LONGER} steps"
                found = by_set(tries, f"{system}{tag} {rate:g}")
                if all(name in found for name in SETS):
                    values = [found[name] for name in SETS]
                    cells = [f"{v:.4f}" for v in values]
                    row = [system, str(steps), f"{rate:g}", *cells, f"{np.mean(values):.4f}"]
                    lines.append(row)
    return [
        "## Learning rates on dev",
        "",
        "nDCG@10 of the best of three checkpoints; one seed; 300 dev queries over 1,000 passages, "
        "cut as in training.",
        "",
        *table(["method", "steps", "rate", *SETS, "mean"], lines),
    ]


def best_dev(record: dict[str, Any]) -> float:
    """Return the dev measure of the checkpoint that would be chosen."""
    return max(value for step, value in record["dev"].items() if step != "0")


def by_set(tries: list[dict[str, Any]], label: str) -> dict[str, float]:
    return {r["set"]: best_dev(r) for r in tries if r["label"] == label and "error" not in r}


def variants(tries: list[dict[str, Any]]) -> list[str]:
    known = {f"{s}{t} {r:g}" for s in GRIDS for r in GRIDS[s] for t in ("", f", {LONGER} steps")}
    labels = {r["label"] for r in tries} - known - {"bare"} | {"deep-prompt 0.1", "full 0.0001"}
    lines = []
    for label in labels:
        found = by_set(tries, label)
        if all(name in found for name in VARIANTS_ON):
            values = [found[name] for name in VARIANTS_ON]
            lines.append((float(np.mean(values)), label, values))
    rows = [
        [label, *(f"{value:.4f}" for value in values), f"{mean:.4f}"]
        for mean, label, values in sorted(lines, reverse=True)
    ]
    return [
        "## Variants on dev",
        "",
        "All else as in `deep-prompt 0.1` (16 rows, 150 steps, learning rate .1). One seed: a "
        "difference of the mean below about .005 says nothing.",
        "",
        *table(["variant", *VARIANTS_ON, "mean"], rows),
    ]


if __name__ == "__main__":
    main()
