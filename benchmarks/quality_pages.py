"""Tables of results/quality.md from the cells of benchmarks/quality.py."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = ("nDCG@10", "RR@10", "R@100")
SYSTEMS = [
    "bm25",
    "bare",
    "deep-prompt",
    "peft-prefix",
    "shallow-prompt",
    "lora",
    "bitfit",
    "full",
]
Records = list[dict[str, Any]]
Cells = dict[str, dict[str, Records]]

INTRODUCTION = """# Quality

Made by `python benchmarks/quality.py run` (cells in `results/quality/`), which can be stopped and
goes on. Test sets are capped (see each head; every judged passage of the kept queries is among the
passages), so figures are higher than over the full corpora and rows of different caps must not be
compared. Training uses the whole train split; checkpoints are chosen on dev queries. Encoder:
MiniLM (`minilm`, 22.7 M parameters) unless the head names another. p: paired randomisation test of
per-query nDCG@10 (mean over seeds). Seconds and memory are of one process on a shared machine: read
them as ratios.
"""


def write(folder: Path, page: Path) -> None:
    """Write the page.

    Args:
        folder: Where the cells lie, one folder for each capped set.
        page: Where to write.
    """
    cells = read(folder)
    lines = [INTRODUCTION]
    lines += summary(cells)
    for name in sorted(cells):
        lines += detail(name, cells[name])
    records = [r for systems in cells.values() for own in systems.values() for r in own]
    origins = {f"commit {r['commit']}, {r['machine']}, {r['precision']}" for r in records}
    lines += ["", "## Origin", "", *(f"- {origin}" for origin in sorted(origins))]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path) -> Cells:
    """Return the records by capped set and row."""
    cells: Cells = {}
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["tag"] = record.get("tag", "")
        cells.setdefault(path.parent.name, {}).setdefault(label(record), []).append(record)
    return cells


def label(record: Mapping[str, Any]) -> str:
    """Name a row."""
    if "steps" not in record:
        return str(record["system"])
    tag = f" ({record['tag']})" if record["tag"] else ""
    return f"{record['system']}{tag}, {record['steps']} steps"


def order(system: str) -> tuple[int, str]:
    """Sort rows: baselines first."""
    kind = system.split(",")[0].split(" (")[0]
    return (SYSTEMS.index(kind) if kind in SYSTEMS else len(SYSTEMS), system)


def per_query(records: Records) -> dict[str, float]:
    """Return each query's mean over seeds."""
    if not records:
        return {}
    return {
        q: statistics.fmean(r["per_query"][q] for r in records) for q in records[0]["per_query"]
    }


def mean_of(records: Records, measure: str = "nDCG@10") -> float:
    """Return a measure's mean over seeds."""
    return statistics.fmean(r["measures"][measure] for r in records)


# --- over all sets


def summary(cells: Cells) -> list[str]:
    """Return the table over all sets: every system in a column of its own steps."""
    rows = sorted({row for systems in cells.values() for row in systems}, key=order)
    sets = sorted(name for name, systems in cells.items() if len(systems) > 2)
    lines = ["## Over all sets", "", "nDCG@10; number of seeds in brackets where it is not one."]
    lines += ["", "| system | " + " | ".join(short(s) for s in sets) + " |"]
    lines += ["| --- " * (len(sets) + 1) + "|"]
    for row in rows:
        found = [cells[name].get(row) for name in sets]
        values = [shown(records) for records in found]
        if sum(1 for value in values if value) > 1:
            lines.append(f"| {row} | " + " | ".join(values) + " |")
    lines += ["", "### Against full fine-tuning", ""]
    lines += [
        "Mean difference of nDCG@10 over the sets that have both rows, each set with the same "
        "weight, and the randomisation test of that mean over all their queries. Whether two rows "
        "are alike in steps or in time is told by their names and by seconds per step below.",
        "",
        "| system | reference | sets | mean | reference's | difference | p | time / reference's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    trained = [row for row in rows if "steps" in row]
    for reference in (row for row in trained if row.startswith("full")):
        for row in trained:
            line = against(cells, sets, row=row, reference=reference)
            if row != reference and line:
                lines.append(line)
    return lines


def short(name: str) -> str:
    """Return a set's name without its caps."""
    return name.replace("-500q-4000p", "")


def shown(records: Records | None) -> str:
    """Return a value of the table over all sets."""
    if not records:
        return ""
    seeds = f" ({len(records)})" if len(records) > 1 else ""
    return f"{mean_of(records):.3f}{seeds}"


def against(cells: Cells, sets: Sequence[str], *, row: str, reference: str) -> str:
    """Return one comparison over all sets that have both rows."""
    shared = [s for s in sets if row in cells[s] and reference in cells[s]]
    if len(shared) < 2:
        return ""
    differences, weights, ratios = [], [], []
    for name in shared:
        own, other = per_query(cells[name][row]), per_query(cells[name][reference])
        differences += [own[q] - other[q] for q in sorted(own)]
        weights += [1.0 / len(own) / len(shared)] * len(own)
        ratios.append(seconds(cells[name][row]) / seconds(cells[name][reference]))
    mean = statistics.fmean(mean_of(cells[s][row]) for s in shared)
    theirs = statistics.fmean(mean_of(cells[s][reference]) for s in shared)
    p = weighted_p(np.array(differences) * np.array(weights))
    return (
        f"| {row} | {reference} | {len(shared)} | {mean:.4f} | {theirs:.4f} | {mean - theirs:+.4f} "
        f"| {p:.4f} | {statistics.fmean(ratios):.2f} |"
    )


def seconds(records: Records) -> float:
    """Return the mean seconds of training."""
    return statistics.fmean(r["training_seconds"] for r in records)


def weighted_p(differences: np.ndarray, *, permutations: int = 20_000) -> float:
    """Return the two-sided p of a sum of weighted paired differences under random signs."""
    generator = np.random.default_rng(0)
    observed = abs(differences.sum()) - 1e-12
    hits = 0
    for _ in range(permutations // 500):
        signs = generator.integers(0, 2, size=(500, len(differences))) * 2 - 1
        hits += int((np.abs(signs @ differences) >= observed).sum())
    return (hits + 1) / (permutations + 1)


# --- one set


HEAD = [
    "| system | nDCG@10 | RR@10 | R@100 | seeds | vs bare | vs full, as many steps | trained | lr "
    "| s/step | training peak MB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]


def detail(name: str, systems: Mapping[str, Records]) -> list[str]:
    """Return one set's table."""
    first = next(iter(systems.values()))[0]
    head = f"{first['set']} ({first['queries']} test queries, {first['passages']} passages"
    encoder = first.get("encoder", "minilm")
    head += ")" if encoder == "minilm" else f"; {encoder})"
    lines = ["", f"## {head}", "", *HEAD]
    bare = per_query(systems.get("bare", []))
    for row in sorted(systems, key=order):
        full = per_query(systems.get(f"full, {systems[row][0].get('steps')} steps", []))
        lines.append(line_of(row, systems[row], bare=bare, full=full))
    return lines


def line_of(row: str, records: Records, *, bare: dict[str, float], full: dict[str, float]) -> str:
    """Return one row of a set's table."""
    own = per_query(records)

    def mean(measure: str) -> str:
        values = [r["measures"][measure] for r in records]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.4f}{spread}"

    first = records[0]
    trained = "trained_parameters" in first
    numbers = [
        f"{first['trained_parameters']:,}" if trained else "",
        f"{first['learning_rate']:g}" if trained else "",
        f"{statistics.fmean(r['seconds_per_step'] for r in records):.2f}" if trained else "",
        f"{max(r['training_peak_memory_mb'] for r in records):.0f}" if trained else "",
    ]
    tests = [difference(own, bare), difference(own, full)]
    found = [row, *(mean(m) for m in MEASURES), str(len(records)), *tests]
    return f"| {' | '.join([*found, *numbers])} |"


def difference(own: dict[str, float], other: dict[str, float]) -> str:
    """Return a mean difference with its p-value."""
    from dptdr.evaluation import paired_test

    if not other or other == own:
        return ""
    test = paired_test(own, other)
    p = test.p_randomisation
    return f"{test.mean_difference:+.4f}, p {f'{p:.4f}' if p >= 5e-5 else '< 0.0001'}"
