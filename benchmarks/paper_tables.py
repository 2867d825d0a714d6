r"""The paper's ablation on real data, results/paper-tables.md: tuning, pretraining and negatives.

    python benchmarks/paper_tables.py run --encoder raw --sets tldr scifact
    python benchmarks/paper_tables.py run --encoder minilm --sets scifact --rows DPT FT
    python benchmarks/paper_tables.py page

FT trains the whole encoder; "DPT, paper" a deep prompt of attention rows on the frozen one, DPT the
default prompt. RIP first pretrains the encoder on the set's own passages. UNM trains with one mined
negative per query, from BM25 and the DPT retriever, except those that this retriever scores above
95 % of the positive. ``raw`` is a small BERT trained only on masked words
(benchmarks/pretraining.py).

A cell is an encoder, a set, a row and a seed, and one line of results/paper-tables.jsonl. Cells
with a line are not run again; encoders and negatives are made once and kept in ``--work``.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import _lib
import pretraining
import quality

RESULTS = _lib.RESULTS / "paper-tables.jsonl"
SETS = pretraining.SETS
MEASURES = quality.MEASURES
PAPER = {"prompt_length": 16, "ffn_length": 0}
# Method, settings, whether the encoder is pretrained before, whether negatives are mined.
ROWS: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "BM25": ("bm25", {}, False, False),
    "encoder": ("bare", {}, False, False),
    "encoder + RIP": ("bare", {}, True, False),
    "FT": ("full", {}, False, False),
    "FT + RIP": ("full", {}, True, False),
    "FT + UNM": ("full", {}, False, True),
    "FT + RIP + UNM": ("full", {}, True, True),
    "DPT, paper": ("deep-prompt", PAPER, False, False),
    "DPT": ("deep-prompt", {}, False, False),
    "DPT + RIP": ("deep-prompt", {}, True, False),
    "DPT + UNM": ("deep-prompt", {}, False, True),
    "DPTDR (all)": ("deep-prompt", {}, True, True),
}
# Chosen on dev queries; what is not named is the product's default.
RATES: dict[tuple[str, str], dict[str, float]] = {("raw", "full"): {"learning_rate": 5e-4}}
COMPARISONS = [
    ("DPT", "DPT, paper"),
    ("DPT", "FT"),
    ("DPT + RIP", "DPT"),
    ("DPT + UNM", "DPT"),
    ("DPTDR (all)", "DPT"),
    ("DPTDR (all)", "FT"),
    ("DPTDR (all)", "FT + RIP + UNM"),
    ("FT + RIP", "FT"),
    ("FT + UNM", "FT"),
]
KEY = ("encoder", "set", "row", "settings", "steps", "seed")
# What the page keeps: tables of attention rows alone.
EARLIER = "## Earlier tables"
NAMES = {"raw": "mlm", "minilm": "minilm"}
PRETRAINED = {"raw": "rip", "minilm": "minilm-rip"}


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are missing", allow_abbrev=False)
    run.add_argument("--sets", nargs="+", required=True, choices=pretraining.CORPORA)
    run.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    encoder = ("raw", "raw, minilm, or a folder")
    mlm = (2000, "of the raw encoder")
    _lib.add_options(run, encoder=encoder, seeds=[0], steps=150, mlm_steps=mlm)
    run.add_argument("--set", action="append", default=[], help="key=value of training or method")
    pretraining.add_machine(run)
    for sub in (run, commands.add_parser("page", help="write the page")):
        _lib.add_options(sub, out=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run_cells(arguments)
    else:
        _lib.write_page(arguments.out.with_suffix(".md"), page_lines(arguments.out))


# --- cells


def run_cells(arguments: argparse.Namespace) -> None:
    """Run all missing cells that no other process is running."""
    import torch

    torch.set_num_threads(arguments.threads)
    more = dict(quality.setting(text) for text in arguments.set)
    # What quality.py calls by other names.
    arguments.queries, arguments.passages = quality.CAPS
    arguments.stored = False
    encoder = Path(arguments.encoder).name
    for seed in arguments.seeds:
        for name in arguments.sets:
            for row in arguments.rows:
                method, settings, _, _ = ROWS[row]
                cell = {"encoder": encoder, "set": name, "row": row}
                if method in quality.UNTRAINED:
                    if seed:
                        continue
                else:
                    rates = RATES.get((encoder, method), {})
                    cell |= {"settings": settings | rates | more, "steps": arguments.steps}
                    cell |= {"seed": seed}
                with _lib.claimed(arguments.work / "locks" / _lib.short_key(cell, KEY)) as mine:
                    done = {_lib.key_of(r, KEY) for r in _lib.read_records(arguments.out)}
                    if mine and _lib.key_of(cell, KEY) not in done:
                        record = cell | measured(cell, arguments)
                        _lib.append_record(arguments.out, record)
                        print(time.strftime("%H:%M:%S"), encoder, name, row, seed, end=" ")
                        print(record.get("dev"), record["test"], flush=True)


def measured(cell: _lib.Record, arguments: argparse.Namespace) -> _lib.Record:
    """Make what a cell needs, and measure it."""
    method, _, pretrained, mined = ROWS[cell["row"]]
    encoder = arguments.encoder
    if method != "bm25":
        names = PRETRAINED if pretrained else NAMES
        made = names.get(encoder)
        if made is None and pretrained:
            raise SystemExit(f"{encoder}: no recipe of pretraining")
        source = pretraining.make(made, cell["set"], arguments) if made else Path(encoder)
        arguments = argparse.Namespace(**vars(arguments) | {"encoder": str(source)})
    folder = pretraining.unpacked(cell["set"], arguments)
    settings = dict(cell.get("settings", {}))
    if mined:
        settings["negatives"] = str(negatives(cell["encoder"], cell["set"], folder, arguments))
    trained = cell | {"method": method, "settings": settings}
    return quality.measured_cell(trained, folder, arguments)


def negatives(encoder: str, name: str, folder: Path, arguments: argparse.Namespace) -> Path:
    """Return an encoder's negatives for a set: of BM25 and of its DPT retriever without RIP."""
    import dptdr

    out: Path = arguments.work / "negatives" / f"{encoder}-{name}.jsonl"
    if out.exists():
        return out
    made = NAMES.get(encoder)
    backbone = pretraining.make(made, name, arguments) if made else Path(encoder)
    retriever = arguments.work / "retrievers" / f"{encoder}-{name}"
    shared: dict[str, Any] = {"device": arguments.device, "threads": arguments.threads}
    shared["min_grade"] = quality.MIN_GRADES.get(name, 1)
    steps = {"max_steps": arguments.steps, "precision": arguments.precision, "seed": 0}
    dptdr.train(folder, out=retriever, backbone=str(backbone), progress=False, **steps, **shared)
    dptdr.mine(
        folder,
        out=out,
        sources=["bm25", f"task:{retriever}"],
        teacher=f"task:{retriever}",
        relative_margin=0.05,
        num_negatives=20,
        range_max=100,
        progress=False,
        **shared,
    )
    return out


# --- page


def page_lines(path: Path) -> list[str]:
    """Return the page."""
    records = [record for record in _lib.read_records(path) if "row" in record]
    path = path.with_suffix(".md")
    lines = _lib.kept_words(path)
    for encoder in dict.fromkeys(record["encoder"] for record in records):
        own = [record for record in records if record["encoder"] == encoder]
        lines += ["", f"## {encoder}", "", *ablation(own), "", *comparisons(own)]
    return [*lines, *_lib.origin(records), "", *_lib.kept_section(path, EARLIER)]


Systems = dict[str, dict[str, list[_lib.Record]]]
"""Records of all seeds by row and set."""


def systems(records: list[_lib.Record]) -> Systems:
    """Return the records by row and set; of several settings those that are best on dev."""
    found: Systems = {}
    for row in ROWS:
        for name in SETS:
            by_settings: dict[str, list[_lib.Record]] = {}
            for record in records:
                if (record["row"], record["set"]) == (row, name):
                    key = _lib.key_of(record, ("settings", "steps"))
                    by_settings.setdefault(key, []).append(record)
            if by_settings:
                best = max(by_settings.values(), key=lambda own: own[0].get("dev", 0.0))
                found.setdefault(row, {})[name] = best
    return found


def ablation(records: list[_lib.Record]) -> list[str]:
    """Return the table in the paper's layout."""
    names = [name for name in SETS if any(r["set"] == name for r in records)]
    rows = []
    for row, own in systems(records).items():
        values = [cell_text(own.get(name, [])) for name in names]
        means = [quality.mean_of(own[name]) for name in names if name in own]
        trained = next(iter(own.values()))[0].get("trained_parameters")
        mean = f"{statistics.fmean(means):.4f}" if len(means) == len(names) else ""
        rows.append([row, "" if trained is None else f"{trained:,}", *values, mean])
    return _lib.table(["nDCG@10", "trained", *names, "mean"], rows)


def cell_text(records: list[_lib.Record]) -> str:
    """Return a mean over seeds, with their number where there are several."""
    if not records:
        return ""
    seeds = f" ({len(records)})" if len(records) > 1 else ""
    return f"{quality.mean_of(records):.3f}{seeds}"


def comparisons(records: list[_lib.Record]) -> list[str]:
    """Return the paired tests of each half of the method."""
    names = [name for name in SETS if any(r["set"] == name for r in records)]
    found = systems(records)
    rows = []
    for one, other in COMPARISONS:
        cells, pairs = [], []
        for name in names:
            pair = [found.get(row, {}).get(name, []) for row in (one, other)]
            seeds = {r["seed"] for r in pair[0]} & {r["seed"] for r in pair[1]}
            a, b = ([r for r in side if r["seed"] in seeds] for side in pair)
            cells.append(_lib.difference(a, b))
            if a:
                pairs.append((a, b))
        if not pairs:
            continue
        whole, p = _lib.over_sets(pairs)
        mean = f"{whole:+.4f}, p {p} ({len(pairs)} sets)"
        rows.append([f"{one} - {other}", *cells, mean])
    return _lib.table(["difference", *names, "mean"], rows)


if __name__ == "__main__":
    main()
