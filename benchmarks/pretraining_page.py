"""Write results/pretraining.md from what the pretraining benchmarks left in results/pretraining/.

``python benchmarks/pretraining_page.py``

What was not measured is named as missing, not left out.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from pretraining_quality import BACKBONES, MEASURES, METHODS, SETS
from pretraining_raw import RECIPES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "pretraining"
Cells = dict[tuple[str, str, str], list[dict[str, Any]]]
"""Records of all seeds by set, backbone and method."""

NAMES = {
    "mlm": "raw",
    "rip": "raw + RIP",
    "more": "raw + more masked words",
    "minilm": "MiniLM",
    "minilm-rip": "MiniLM + RIP",
    "minilm-prompt": "MiniLM + prompt-only RIP",
}
ALPHA = 0.05


def main() -> None:
    lines = [
        "# Intermediate pretraining",
        "",
        "Made by `python benchmarks/pretraining_page.py` from `results/pretraining/`. Words: "
        "[docs/pretraining.md](../docs/pretraining.md). RIP: retrieval-oriented intermediate "
        "pretraining with all three objectives.",
    ]
    cells = read_cells()
    for part in (goals(cells), quality(cells), encoders(), cost()):
        lines += ["", *part]
    (ROOT / "results" / "pretraining.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_cells() -> Cells:
    cells: Cells = {}
    for path in sorted((RESULTS / "cells").glob("*/*.json")):
        record = read(path)
        key = (record["set"], record["backbone"], record["method"])
        cells.setdefault(key, []).append(record)
    return cells


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def test(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> Any:
    """Compare two systems by each query's mean over the seeds that both have."""
    from dptdr.evaluation import paired_test

    shared = {r["seed"] for r in own} & {r["seed"] for r in other}

    def means(records: list[dict[str, Any]]) -> dict[str, float]:
        chosen = [r for r in records if r["seed"] in shared]
        return {q: statistics.fmean(r["per_query"][q] for r in chosen) for q in own[0]["per_query"]}

    return paired_test(means(own), means(other))


def gain(cells: Cells, name: str, own: tuple[str, str], other: tuple[str, str]) -> tuple[str, int]:
    """Return a difference with its p-value, and 1, -1 or 0: better, worse or undecided."""
    a, b = cells.get((name, *own)), cells.get((name, *other))
    if a is None or b is None:
        return "not measured", 0
    found = test(a, b)
    p = found.p_randomisation
    shown = f"{found.mean_difference:+.4f}, p {f'{p:.4f}' if p >= 5e-5 else '< 0.0001'}"
    return shown, (1 if found.mean_difference > 0 else -1) if p < ALPHA else 0


COMPARISONS: list[tuple[str, tuple[str, str], tuple[str, str]]] = [
    ("RIP adds, nothing tuned", ("rip", "zero-shot"), ("mlm", "zero-shot")),
    ("RIP adds, deep prompt", ("rip", "deep-prompt"), ("mlm", "deep-prompt")),
    ("RIP adds, full fine-tuning", ("rip", "full"), ("mlm", "full")),
    ("RIP and deep prompt against full without RIP", ("rip", "deep-prompt"), ("mlm", "full")),
    ("RIP against more masked words, deep prompt", ("rip", "deep-prompt"), ("more", "deep-prompt")),
    ("MiniLM: RIP adds, deep prompt", ("minilm-rip", "deep-prompt"), ("minilm", "deep-prompt")),
    (
        "MiniLM: prompt-only RIP as a start adds, deep prompt",
        ("minilm-prompt", "deep-prompt"),
        ("minilm", "deep-prompt"),
    ),
    (
        "MiniLM: prompt-only RIP adds, nothing tuned",
        ("minilm-prompt", "zero-shot"),
        ("minilm", "zero-shot"),
    ),
]


def goals(cells: Cells) -> list[str]:
    """Say how often each comparison came out which way."""
    rows = []
    for title, own, other in COMPARISONS:
        found = [gain(cells, name, own, other) for name in SETS]
        measured = [sign for shown, sign in found if shown != "not measured"]
        rows.append(
            [
                title,
                f"{measured.count(1)} better, {measured.count(-1)} worse, "
                f"{measured.count(0)} undecided"
                if measured
                else "not measured",
                *(shown for shown, _ in found),
            ]
        )
    return [
        "## What was wanted, and what was found",
        "",
        "Wanted: RIP gives a significant gain for deep prompts on the raw encoder in every set, "
        "and on average on MiniLM; RIP with deep prompts reaches at least full fine-tuning without "
        "it. Differences of nDCG@10 and p of the paired randomisation test over queries (each "
        f"query's mean over seeds); better and worse at p < {ALPHA}.",
        "",
        *table(["comparison", "outcome", *SETS], rows),
    ]


def quality(cells: Cells) -> list[str]:
    lines = [
        "## Figures by data set",
        "",
        "Cells of `python benchmarks/pretraining_quality.py run`. Test sets are capped, so figures "
        "are higher than over the full corpora; texts are cut at 64 tokens, in training as in the "
        "test. Mined negatives with RIP were not measured.",
    ]
    origins = set()
    for name in SETS:
        rows = []
        for backbone in BACKBONES:
            for method in METHODS:
                records = cells.get((name, backbone, method))
                if records is None:
                    continue
                first = records[0]
                origins.add(f"commit {first['commit']}, {first['machine']}, {first['precision']}")
                rate = f"{first['learning_rate']:g}" if "learning_rate" in first else ""
                steps = str(first.get("steps", ""))
                measures = [mean(records, measure) for measure in MEASURES]
                seeds = ", ".join(str(r["seed"]) for r in records)
                rows.append([NAMES[backbone], method, *measures, steps, rate, seeds])
        lines += ["", f"### {name}", ""]
        if not rows:
            lines.append("Not measured.")
            continue
        caps = next(c[0] for key, c in cells.items() if key[0] == name)
        lines += [f"{caps['queries']} test queries, {caps['passages']} passages.", ""]
        head = ["encoder", "method", *MEASURES, "steps", "learning rate", "seeds"]
        lines += table(head, rows)
    return [*lines, "", *(f"- {origin}" for origin in sorted(origins))]


def mean(records: list[dict[str, Any]], measure: str) -> str:
    values = [record["measures"][measure] for record in records]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def encoders() -> list[str]:
    lines = [
        "## The encoders",
        "",
        "Made by `python benchmarks/pretraining_raw.py`, seeded, on the corpora of all data sets "
        "here and both sample tasks together. The raw encoder (4 layers, 256 numbers per token, "
        "MiniLM's vocabulary, mean pooling) starts at random and has seen these corpora alone, for "
        "minutes of one processor core: it knows far less than a published checkpoint, and its "
        "figures say what pretraining adds, not what is reached by it.",
        "",
    ]
    rows = []
    for name, (base, options) in RECIPES.items():
        path = RESULTS / "backbones" / f"{name}.json"
        if not path.is_file():
            rows.append(
                [NAMES[name], NAMES.get(base, "random weights"), f"`{options}`", *["not made"] * 4]
            )
            continue
        made = read(path)
        best = made["dev"][str(made["best_step"])]
        losses = ", ".join(
            f"{part} {made['bare_dev'][f'loss of {part}']:.2f} -> {best[f'loss of {part}']:.2f}"
            for part in made["objectives"]
        )
        ranks = f"{made['bare_dev']['sibling RR']:.3f} -> {best['sibling RR']:.3f}"
        rows.append(
            [
                NAMES[name],
                NAMES.get(base, "random weights"),
                f"`{options}`",
                losses,
                ranks,
                f"{made['tokens']:,}",
                f"{made['training_seconds']:.0f}",
            ]
        )
    head = ["encoder", "from", "options", "held-out losses", "sibling RR", "tokens", "seconds"]
    return lines + table(head, rows)


def cost() -> list[str]:
    lines = ["## Cost", ""]
    path = RESULTS / "cost.json"
    if not path.is_file():
        return [*lines, "Not measured."]
    found = read(path)
    lines += [
        f"`{found['command']}`, commit {found['commit']}, {found['machine']}, {found['threads']} "
        f"thread, {found['precision']}, torch {found['torch']}, encoder {found['backbone']}.",
        "",
        "Tokens per second of processor time. Plain transformers makes the same forward and "
        "backward passes on tokens that are ready; dptdr reads, cuts and masks them as well. "
        "Medians over rounds in turns; the ratio is the median of the rounds' ratios.",
        "",
    ]
    rows = [
        [
            row["objectives"],
            row["system"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio_to_plain']:.2f}",
        ]
        for row in found["speed"]
    ]
    lines += table(["objectives", "system", "tokens/s", "of plain"], rows)
    lines += ["", "Memory of a step with all objectives, above the loaded model:", ""]
    rows = [
        [
            f"{row['batch_size']:,}",
            str(row["chunk_texts"] or "whole batch"),
            f"{row['peak_mb'] - row['before_mb']:,}",
        ]
        for row in found["memory"]
    ]
    lines += table(["documents per step", "spans per chunk", "MB"], rows)
    return [*lines, "", "No figure of a GPU: none was at hand."]


if __name__ == "__main__":
    main()
