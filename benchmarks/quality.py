r"""Quality of tuning methods on real tasks: cells in results/quality.jsonl, the page from them.

A cell is a data set, a method with its settings, and a seed, and one line of the file. Cells with a
line are not run again; stopped training is resumed. Several processes may run at once::

    python benchmarks/quality.py run --sets tldr medquad --method deep-prompt \
        --set prompt_length=32 --set learning_rate=0.1 --steps 150 --seeds 0 1 2
    python benchmarks/quality.py run --sets tldr --method bm25 bare full
    python benchmarks/quality.py page

Test sets are capped and seeded; training uses the whole train split. ``--set`` takes a setting of
training or of the method, its value as JSON or plain text.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _lib

DATA_FILE = _lib.RESULTS / "quality.jsonl"
CELL = ("set", "queries_cap", "passages_cap", "encoder", "precision", "method")
KEY = (*CELL, "settings", "steps", "seed")
CAPS = (500, 4000)
UNTRAINED = ("bm25", "bare")
METHODS = (*UNTRAINED, "deep-prompt", "shallow-prompt", "lora", "bitfit", "full")
MEASURES = ("nDCG@10", "RR@10", "R@100")
# TREC counts grades of 2 and 3 as relevant.
MIN_GRADES = {"msmarco-dl": 2}


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are missing", allow_abbrev=False)
    run.add_argument("--sets", nargs="+", required=True, help="names of data sets")
    run.add_argument("--method", nargs="+", required=True, choices=METHODS)
    run.add_argument("--set", action="append", default=[], help="key=value of training or method")
    _lib.add_options(run, seeds=[0], steps=150, queries=(CAPS[0], "most test queries"))
    _lib.add_options(run, passages=(CAPS[1], "most passages, judged ones first"))
    _lib.add_options(run, **_lib.MACHINE, work=_lib.temporary("quality"))
    run.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    run.add_argument("--stored", action="store_true", help="also measure rows of 16 bits")
    for sub in (run, commands.add_parser("page", help="write the page")):
        _lib.add_options(sub, out=DATA_FILE)
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
    settings = dict(setting(text) for text in arguments.set)
    for name in arguments.sets:
        folder = _lib.data_folder(name, data=arguments.data, work=arguments.work)
        for method in arguments.method:
            for seed in [0] if method in UNTRAINED else arguments.seeds:
                cell = cell_of(name, method, seed, settings=settings, arguments=arguments)
                lock = arguments.work / "locks" / _lib.short_key(cell, KEY)
                with _lib.claimed(lock) as mine:
                    if not mine or _lib.key_of(cell, KEY) in done_keys(arguments.out):
                        continue
                    print(f"{time.strftime('%H:%M:%S')} {name} {label(cell)} {seed}", flush=True)
                    record = cell | measured_cell(cell, folder, arguments)
                    _lib.append_record(arguments.out, record)
                    print(f"  {record.get('dev')} {record['test']}", flush=True)


def setting(text: str) -> tuple[str, Any]:
    """Return a setting's name and value."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def cell_of(
    name: str, method: str, seed: int, *, settings: dict[str, Any], arguments: argparse.Namespace
) -> _lib.Record:
    """Return what names a cell."""
    cell = {
        "set": name,
        "queries_cap": arguments.queries,
        "passages_cap": arguments.passages,
        "encoder": Path(arguments.encoder).name,
        "precision": arguments.precision,
        "method": method,
    }
    if method in UNTRAINED:
        return cell
    return cell | {"settings": settings, "steps": arguments.steps, "seed": seed}


def done_keys(path: Path) -> set[str]:
    """Return the keys of the cells that have a line."""
    return {_lib.key_of(record, KEY) for record in _lib.read_records(path)}


def measured_cell(cell: _lib.Record, path: Path, arguments: argparse.Namespace) -> _lib.Record:
    """Train where there is something to train, and measure on the capped test set."""
    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import evaluate
    from dptdr.io.beir import BeirFolder

    folder = BeirFolder(path)
    test = capped_test(folder, test_queries=arguments.queries, passages=arguments.passages, seed=0)
    record: _lib.Record = {}
    if cell["method"] == "bm25":
        from dptdr.search.bm25 import Bm25Index

        run = Bm25Index.build(test.passages).search(test.queries, depth=100)
    else:
        encoder = tuned(cell, folder, record, arguments)
        run = searched(encoder, test, arguments)
        if arguments.stored and cell["method"] == "deep-prompt" and cell["seed"] == 0:
            record["stored"] = rounded(encoder, test, arguments)
    result = evaluate(run, test.qrels, measures=MEASURES)
    return record | {
        "test": {name: round(float(value), 6) for name, value in result.measures.items()},
        "queries": len(test.queries),
        "passages": len(test.passages),
        "commit": _lib.commit(),
        "machine": _lib.machine(),
        **_lib.compact(result.per_query["nDCG@10"]),
    }


def tuned(
    cell: _lib.Record, folder: Any, record: _lib.Record, arguments: argparse.Namespace
) -> Any:
    """Return the bare encoder, or one that was trained for this cell."""
    from dptdr.config.methods import config_from
    from dptdr.config.training import TrainingConfig
    from dptdr.model import Backbone, Encoder, load_task
    from dptdr.training.preparation import load_data
    from dptdr.training.train import train_task

    # A fresh one for each cell: full fine-tuning and BitFit change it.
    backbone = Backbone.load(arguments.encoder, device=arguments.device)
    if cell["method"] == "bare":
        return Encoder(backbone)
    names = TrainingConfig.__dataclass_fields__
    settings = dict(cell["settings"])
    negatives = settings.pop("negatives", None)
    min_grade = settings.pop("min_grade", MIN_GRADES.get(cell["set"], 1))
    config = TrainingConfig(
        max_steps=cell["steps"],
        seed=cell["seed"],
        precision=arguments.precision,
        **{key: value for key, value in settings.items() if key in names},
    )
    method, method_config = config_from(
        cell["method"], {key: value for key, value in settings.items() if key not in names}
    )
    out = arguments.work / "tasks" / _lib.short_key(cell, KEY)
    clock = Clock()
    result = train_task(
        load_data(
            folder,
            config,
            negatives=None if negatives is None else Path(negatives),
            min_grade=min_grade,
        ),
        out,
        backbone=backbone,
        method_name=method,
        method_config=method_config,
        config=config,
        progress=clock.tick,
    )
    assert result is not None
    record |= {
        "learning_rate": config.rate_for(method),
        "batch_size": config.batch_size,
        "min_grade": min_grade,
        "trained_parameters": result.manifest.trained_parameters,
        "processor_seconds_per_step": clock.seconds_per_step(),
        "best_step": result.best_step,
        "dev": round(result.history[result.best_step]["nDCG@10"], 6),
        "bare_dev": round(result.bare["nDCG@10"], 6),
    }
    encoder = load_task(out, backbone=backbone)
    for made in (out, result.run_folder):
        shutil.rmtree(made)
    return encoder


def rounded(encoder: Any, test: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Return nDCG@10 with the prompt's rows rounded to 16 bits, by number type."""
    from dptdr.evaluation import evaluate
    from dptdr.model.bundle import round_weights

    exact = {name: tensor.clone() for name, tensor in encoder.method.state().items()}
    made = {}
    for dtype in ("float16", "bfloat16"):
        encoder.method.load(exact)
        round_weights(encoder.method, dtype)
        run = searched(encoder, test, arguments)
        value = evaluate(run, test.qrels, measures=["nDCG@10"]).measures["nDCG@10"]
        made[dtype] = round(float(value), 6)
    return made


class Clock:
    """Processor time between steps; the median leaves out those with an evaluation between."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, _progress: Any) -> None:
        """Note the time of a step."""
        self.times.append(time.process_time())

    def seconds_per_step(self) -> float | None:
        """Return the median over the steps, if this process took two at least."""
        if len(self.times) < 2:
            return None
        steps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return round(statistics.median(steps), 4)


def searched(encoder: Any, test: Any, arguments: argparse.Namespace) -> Any:
    """Return the run over the capped set."""
    import torch

    from dptdr.search.retrieve import retrieve

    kind = arguments.device.split(":")[0]
    enabled = arguments.precision == "bfloat16"
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled):
        return retrieve(encoder, queries=test.queries, passages=test.passages, depth=100)


# --- page

INTRODUCTION = """\
# Quality

Made by `python benchmarks/quality.py` from `quality.jsonl`. Test sets are capped (see each head;
every judged passage of the kept queries is among the passages), so figures are higher than over the
full corpora and rows of different caps must not be compared. Training uses the whole train split;
checkpoints are chosen on dev queries. Heads name encoder and precision; `minilm` is MiniLM with
22.7 M parameters. `deep-prompt` is the default prompt, with attention and feed-forward rows;
`ffn_length 0` has attention rows alone (the paper's), `prompt_length 0` feed-forward rows alone.
±: standard deviation over seeds. p: paired randomisation test of nDCG@10 per query (mean over
seeds).
"""


def page_lines(path: Path) -> list[str]:
    """Return the page."""
    records = _lib.read_records(path)
    # Rows of one table: the same encoder, precision and test set.
    tables: dict[str, dict[str, dict[str, list[_lib.Record]]]] = {}
    for record in records:
        variant = f"{record['encoder']}, {record['precision']}"
        of_set = tables.setdefault(variant, {}).setdefault(set_name(record), {})
        of_set.setdefault(label(record), []).append(record)
    lines = [INTRODUCTION]
    for variant, sets in tables.items():
        lines += over_sets(sets, title=f"; {variant}")
    for variant, sets in tables.items():
        for name in sorted(sets):
            lines += one_set(sets[name], title=f"; {variant}")
    return lines + _lib.origin(records)


def set_name(record: _lib.Record) -> str:
    """Name a capped set; the usual caps are left out."""
    caps = (record["queries_cap"], record["passages_cap"])
    return record["set"] + ("" if caps == CAPS else f" {caps[0]}/{caps[1]}")


def label(record: _lib.Record) -> str:
    """Name a row."""
    if record["method"] in UNTRAINED:
        return str(record["method"])
    shown = [f"{key} {value}" for key, value in sorted(record["settings"].items())]
    return ", ".join([record["method"], *shown, f"{record['steps']} steps"])


def order(row: str) -> tuple[int, str]:
    """Sort rows: baselines first."""
    return METHODS.index(row.split(",")[0]), row


def over_sets(sets: dict[str, dict[str, list[_lib.Record]]], *, title: str) -> list[str]:
    """Return the tables over all sets: all rows, and each method as chosen by dev."""
    names = sorted(sets)
    rows = sorted({row for systems in sets.values() for row in systems}, key=order)
    cells = [[row, *(shown(sets[n].get(row, [])) for n in names)] for row in rows]
    lines = [f"## Over all sets{title}", "", "nDCG@10; number of seeds in brackets if not one.", ""]
    lines += _lib.table(["system", *names], [c for c in cells if sum(map(bool, c)) > 2])
    lines += ["", f"### The settings that are best on dev{title}", ""]
    lines += [
        "Of each method and number of steps, the row of each set with the highest dev nDCG@10."
    ]
    head = ["method", *names, "mean", "against full", "against bare"]
    best = best_settings(sets, rows)
    lines += ["", *_lib.table(head, best_rows(best, names))]
    longer = equal_time(best)
    if longer:
        lines += ["", f"### Beside full fine-tuning of {REFERENCE_STEPS} steps{title}", ""]
        lines += [
            "Time: steps times processor seconds of a step, as a share of full fine-tuning's, over "
            "the sets whose two trainings ran on one kind of machine."
        ]
        head = ["method", "sets", "time", "mean", "full", "difference", "sets below, p < .05"]
        lines += ["", *_lib.table(head, longer)]
    stored = stored_rows(sets)
    if stored:
        lines += ["", f"### Rows stored in 16 bits{title}", ""]
        lines += ["Change of nDCG@10 against the same rows in float32; seed 0.", ""]
        lines += _lib.table(["set", "system", "float32", "float16", "bfloat16"], stored)
    return lines


def stored_rows(sets: dict[str, dict[str, list[_lib.Record]]]) -> list[list[str]]:
    """Return a row for each prompt that was also measured with rounded rows."""
    return [
        [name, row, f"{exact:.4f}", *(f"{value - exact:+.4f}" for value in r["stored"].values())]
        for name in sorted(sets)
        for row, records in sets[name].items()
        for r in records
        if "stored" in r
        for exact in [r["test"]["nDCG@10"]]
    ]


Best = dict[str, dict[str, list[_lib.Record]]]
"""Records of all seeds by family and set."""

REFERENCE_STEPS = 150


def best_settings(sets: dict[str, dict[str, list[_lib.Record]]], rows: Sequence[str]) -> Best:
    """Return the records that dev chooses in each family."""
    return {
        f: {n: chosen(sets[n], f) for n in sets if any(family(row) == f for row in sets[n])}
        for f in dict.fromkeys(family(row) for row in rows)
    }


def equal_time(best: Best) -> list[list[str]]:
    """Return a row for each family on the sets that full fine-tuning has too."""
    full = best.get(f"full, {REFERENCE_STEPS} steps", {})
    rows = []
    for name, own in best.items():
        shared = [n for n in own if n in full]
        if name in UNTRAINED or own is full or not shared:
            continue
        times = [share for n in shared if (share := time_share(own[n], full[n])) is not None]
        below = [n for n in shared if _lib.below(own[n], full[n])]
        means = [statistics.fmean(mean_of(rows[n]) for n in shared) for rows in (own, full)]
        rows.append(
            [
                name,
                str(len(shared)),
                f"{statistics.fmean(times):.2f}" if times else "",
                *(f"{mean:.4f}" for mean in means),
                against({n: own[n] for n in shared}, full),
                ", ".join(below) or "none",
            ]
        )
    return rows


def time_share(own: Sequence[_lib.Record], other: Sequence[_lib.Record]) -> float | None:
    """Return the time of a training as a share of another's, None if no machine ran both."""
    for machine in dict.fromkeys(record["machine"] for record in own):
        one, two = (
            [
                record["steps"] * record["processor_seconds_per_step"]
                for record in records
                if record["machine"] == machine and record.get("processor_seconds_per_step")
            ]
            for records in (own, other)
        )
        if one and two:
            return statistics.fmean(one) / statistics.fmean(two)
    return None


def best_rows(best: Best, names: Sequence[str]) -> list[list[str]]:
    """Return a row for each method with as many steps, with tests over all its queries."""
    found = []
    for name, own in best.items():
        if len(own) < 2:
            continue
        full = best.get(f"full, {name.rpartition(', ')[2]}", {})
        found.append(
            [
                name,
                *(shown(own.get(n, [])) for n in names),
                f"{statistics.fmean(mean_of(records) for records in own.values()):.4f}",
                "" if name in UNTRAINED or full is own else against(own, full),
                "" if name == "bare" else against(own, best.get("bare", {})),
            ]
        )
    return found


# What is not a rate or another number to be tuned tells rows apart.
KINDS = ("sharing ", "ffn_length 0", "prompt_length 0", "prompt_layers ", "targets ", "negatives ")


def family(row: str) -> str:
    """Return what is left of a row's name without tuned settings: kind of method, and steps."""
    first, *others = row.split(", ")
    kept = [part for part in others if part.startswith(KINDS) or part.endswith(" steps")]
    return ", ".join([first, *kept])


def chosen(systems: dict[str, list[_lib.Record]], name: str) -> list[_lib.Record]:
    """Return the records of the settings that are best on dev."""
    own = [records for row, records in systems.items() if family(row) == name]
    dev = [statistics.fmean(r.get("dev", 0.0) for r in records) for records in own]
    return own[dev.index(max(dev))] if own else []


def against(own: dict[str, list[_lib.Record]], other: dict[str, list[_lib.Record]]) -> str:
    """Return the mean difference over the sets that both have, each with the same weight."""
    shared = [n for n in own if n in other and own[n][0]["query_ids"] == other[n][0]["query_ids"]]
    if not shared:
        return ""
    difference, p = _lib.over_sets([(own[n], other[n]) for n in shared])
    sets = "" if len(shared) == len(own) else f" ({len(shared)} sets)"
    return f"{difference:+.4f}, p {p}{sets}"


def mean_of(records: Sequence[_lib.Record]) -> float:
    """Return the mean nDCG@10 over seeds."""
    return statistics.fmean(r["test"]["nDCG@10"] for r in records)


def shown(records: Sequence[_lib.Record]) -> str:
    """Return a value of the tables over all sets."""
    if not records:
        return ""
    return f"{mean_of(records):.3f}" + (f" ({len(records)})" if len(records) > 1 else "")


def one_set(systems: dict[str, list[_lib.Record]], *, title: str) -> list[str]:
    """Return one set's table."""
    first = next(iter(systems.values()))[0]
    head = f"{first['set']} ({first['queries']} test queries, {first['passages']} passages)"
    names = ["system", "dev", *MEASURES, "seeds", "vs bare", "vs full, as many steps"]
    names += ["trained", "lr", "s/step"]
    rows = []
    for row in sorted(systems, key=order):
        records = systems[row]
        one = records[0]
        full = chosen(systems, f"full, {one.get('steps')} steps")
        rows.append(
            [
                row,
                _lib.spread([r["dev"] for r in records]) if "dev" in one else "",
                *(_lib.spread([r["test"][m] for r in records]) for m in MEASURES),
                str(len(records)),
                _lib.difference(records, systems.get("bare", [])),
                _lib.difference(records, full),
                f"{one['trained_parameters']:,}" if "trained_parameters" in one else "",
                f"{one['learning_rate']:g}" if "learning_rate" in one else "",
                step_seconds(records),
            ]
        )
    return ["", f"## {head}{title}", "", *_lib.table(names, rows)]


def step_seconds(records: Sequence[_lib.Record]) -> str:
    """Return the processor's seconds of a step; those by the clock are marked."""
    own = [r["processor_seconds_per_step"] for r in records if r.get("processor_seconds_per_step")]
    if own:
        return f"{statistics.fmean(own):.2f}"
    clock = [r["seconds_per_step"] for r in records if "seconds_per_step" in r]
    return f"{statistics.fmean(clock):.2f} by the clock" if clock else ""


if __name__ == "__main__":
    main()
