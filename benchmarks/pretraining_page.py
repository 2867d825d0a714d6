"""Write results/pretraining.md from the records in results/pretraining.jsonl.

``python benchmarks/pretraining_page.py``

What was not measured is named as missing, not left out.
"""

import itertools
from typing import Any

import _lib
from pretraining_raw import JOINT, RECIPES

RESULTS = _lib.RESULTS / "pretraining.jsonl"
SETS = ("tldr", "scifact", "medquad", "nq-oracle", "python-code", "python-api")
BACKBONES = ("mlm", "rip", "mlm-prompt", "more", "minilm", "minilm-rip", "minilm-prompt")
METHODS = ("zero-shot", "deep-prompt", "full")
NEGATIVES = ("in-batch", "unified")
MEASURES = ("nDCG@10", "RR@10", "R@100")
Row = tuple[str, str, str]
"""Backbone, method, negatives."""

Cells = dict[tuple[str, *Row], list[dict[str, Any]]]
"""Records of all seeds by set and row."""

NAMES = {
    "mlm": "raw",
    "rip": "raw + RIP",
    "mlm-prompt": "raw + prompt-only RIP",
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
        "Made by `python benchmarks/pretraining_page.py` from `pretraining.jsonl`. Words: "
        "[docs/pretraining.md](../docs/pretraining.md). RIP: retrieval-oriented intermediate "
        "pretraining with all three objectives.",
    ]
    cells = read_cells()
    for part in (goals(cells), quality(cells), encoders(), cost()):
        lines += ["", *part]
    _lib.write_page(RESULTS.with_suffix(".md"), lines)


def read_cells() -> Cells:
    cells: Cells = {}
    for record in _lib.read_records(RESULTS):
        if record["part"] != "cell":
            continue
        row = (record["backbone"], record["method"], record["negatives"])
        cells.setdefault((record["set"], *row), []).append(record)
    return cells


def test(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> Any:
    """Compare two systems by each query's mean over the seeds that both have."""
    shared = {r["seed"] for r in own} & {r["seed"] for r in other}
    return _lib.paired(*([r for r in side if r["seed"] in shared] for side in (own, other)))


def gain(cells: Cells, name: str, own: Row, other: Row) -> tuple[str, int]:
    """Return a difference with its p-value, and 1, -1 or 0: better, worse or undecided."""
    a, b = cells.get((name, *own)), cells.get((name, *other))
    if a is None or b is None:
        return "not measured", 0
    found = test(a, b)
    p = found.p_randomisation
    seeds = len({r["seed"] for r in a} & {r["seed"] for r in b})
    shown = f"{found.mean_difference:+.4f}, p {_lib.p_text(p)} ({seeds})"
    return shown, (1 if found.mean_difference > 0 else -1) if p < ALPHA else 0


def row(backbone: str, method: str, negatives: str = "in-batch") -> Row:
    return backbone, method, negatives


COMPARISONS: list[tuple[str, Row, Row]] = [
    ("RIP adds, nothing tuned", row("rip", "zero-shot"), row("mlm", "zero-shot")),
    ("RIP adds, deep prompt", row("rip", "deep-prompt"), row("mlm", "deep-prompt")),
    (
        "RIP adds, deep prompt, unified negatives",
        row("rip", "deep-prompt", "unified"),
        row("mlm", "deep-prompt", "unified"),
    ),
    ("RIP adds, full fine-tuning", row("rip", "full"), row("mlm", "full")),
    (
        "unified negatives add, deep prompt on RIP",
        row("rip", "deep-prompt", "unified"),
        row("rip", "deep-prompt"),
    ),
    (
        "RIP, unified negatives and deep prompt against full without both",
        row("rip", "deep-prompt", "unified"),
        row("mlm", "full"),
    ),
    (
        "RIP and deep prompt against full without RIP",
        row("rip", "deep-prompt"),
        row("mlm", "full"),
    ),
    (
        "RIP against more masked words, deep prompt",
        row("rip", "deep-prompt"),
        row("more", "deep-prompt"),
    ),
    (
        "prompt-only RIP adds, nothing tuned",
        row("mlm-prompt", "zero-shot"),
        row("mlm", "zero-shot"),
    ),
    (
        "prompt-only RIP as a start adds, deep prompt",
        row("mlm-prompt", "deep-prompt"),
        row("mlm", "deep-prompt"),
    ),
    (
        "MiniLM: RIP adds, nothing tuned",
        row("minilm-rip", "zero-shot"),
        row("minilm", "zero-shot"),
    ),
    (
        "MiniLM: RIP adds, deep prompt",
        row("minilm-rip", "deep-prompt"),
        row("minilm", "deep-prompt"),
    ),
    (
        "MiniLM: prompt-only RIP as a start adds, deep prompt",
        row("minilm-prompt", "deep-prompt"),
        row("minilm", "deep-prompt"),
    ),
    (
        "MiniLM: prompt-only RIP adds, nothing tuned",
        row("minilm-prompt", "zero-shot"),
        row("minilm", "zero-shot"),
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
        "query's mean over seeds, whose number stands in brackets); better and worse at "
        f"p < {ALPHA}.",
        "",
        *_lib.table(["comparison", "outcome", *SETS], rows),
    ]


def quality(cells: Cells) -> list[str]:
    lines = [
        "## Figures by data set",
        "",
        "A new cell is `python benchmarks/quality.py run --encoder FOLDER`. Test sets are capped, "
        "so figures are higher than over the full corpora; texts are cut at 64 tokens, in training "
        "as in the test. Unified negatives: besides those of the batch one a query, drawn from 10 "
        "of the union of BM25's and MiniLM's first hundred, without what MiniLM scores above 95 % "
        "of the "
        "positive: the same file for all encoders, so that a stronger one chose them than the raw "
        "ones that learn from them.",
    ]
    origins = set()
    for name in SETS:
        rows = []
        for backbone in BACKBONES:
            for method, negatives in itertools.product(METHODS, NEGATIVES):
                records = cells.get((name, backbone, method, negatives))
                if records is None:
                    continue
                first = records[0]
                origins.add(f"commit {first['commit']}, {first['machine']}, {first['precision']}")
                rate = f"{first['learning_rate']:g}" if "learning_rate" in first else ""
                steps = str(first.get("steps", ""))
                measures = [_lib.spread([r["measures"][m] for r in records]) for m in MEASURES]
                seeds = ", ".join(str(r["seed"]) for r in records)
                own = "" if method == "zero-shot" else negatives
                rows.append([NAMES[backbone], method, own, *measures, steps, rate, seeds])
        lines += ["", f"### {name}", ""]
        if not rows:
            lines.append("Not measured.")
            continue
        caps = next(c[0] for key, c in cells.items() if key[0] == name)
        lines += [f"{caps['queries']} test queries, {caps['passages']} passages.", ""]
        head = ["encoder", "method", "negatives", *MEASURES, "steps", "learning rate", "seeds"]
        lines += _lib.table(head, rows)
    return [*lines, "", *(f"- {origin}" for origin in sorted(origins))]


def encoders() -> list[str]:
    lines = [
        "## The encoders",
        "",
        "Made by `python benchmarks/pretraining_raw.py`, seeded. The raw encoder (4 layers, 256 "
        "numbers per token, MiniLM's vocabulary, mean pooling) starts at random and has seen the "
        "passages of all data sets here and of both sample tasks, nothing else: it knows far less "
        "than a published checkpoint, and its figures say what pretraining adds, not what is "
        "reached by it. It was trained on one NVIDIA H200, which other trainings shared. All "
        "others are made on one set's own passages, on one processor core. (An earlier raw "
        "encoder, whose masked-word loss stood at 6.7, and RIP on all corpora joined did harm on "
        "three sets of three.)",
        "",
    ]
    rows = []
    records = [r for r in _lib.read_records(RESULTS) if r["part"] == "encoder"]
    found = {(record["name"], record["set"]): record for record in records}
    for name, (base, options) in RECIPES.items():
        for data in [""] if name in JOINT else SETS:
            made = found.get((name, data))
            if made is not None:
                rows.append(encoder_row(name, data, base=base, options=options, made=made))
    head = ["encoder", "on", "from", "options", "held-out losses", "sibling RR", "tokens"]
    return lines + _lib.table([*head, "seconds"], rows)


def encoder_row(
    name: str, data: str, *, base: str, options: str, made: dict[str, Any]
) -> list[str]:
    best = made["dev"][str(made["best_step"])]
    losses = ", ".join(
        f"{part} {made['bare_dev'][f'loss of {part}']:.2f} -> {best[f'loss of {part}']:.2f}"
        for part in made["objectives"]
    )
    return [
        NAMES[name],
        data or "all",
        NAMES.get(base, "random weights"),
        f"`{options if data else made['options']}`",
        losses,
        f"{made['bare_dev']['sibling RR']:.3f} -> {best['sibling RR']:.3f}",
        f"{made['tokens']:,}",
        f"{made['training_seconds']:.0f}",
    ]


def cost() -> list[str]:
    lines = ["## Cost", ""]
    found = next((r for r in _lib.read_records(RESULTS) if r["part"] == "cost"), None)
    if found is None:
        return [*lines, "Not measured."]
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
    lines += _lib.table(["objectives", "system", "tokens/s", "of plain"], rows)
    lines += ["", "Memory of a step with all objectives, above the loaded model:", ""]
    rows = [
        [
            f"{row['batch_size']:,}",
            str(row["chunk_texts"] or "whole batch"),
            f"{row['peak_mb'] - row['before_mb']:,}",
        ]
        for row in found["memory"]
    ]
    lines += _lib.table(["documents per step", "spans per chunk", "MB"], rows)
    return [
        *lines,
        "",
        "On a GPU only the raw encoder was trained, beside up to 15 other trainings on the same "
        "card and 16 cores: 120,500 tokens a second with five reading processes. Alone, and as a "
        "share of the card's limit, it was not measured.",
    ]


if __name__ == "__main__":
    main()
