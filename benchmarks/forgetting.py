"""What a tuned task loses on all other tasks: the matrix of results/forgetting.md.

Takes the task bundles that ``benchmarks/quality.py run`` left in its work folder and evaluates each
on every set; cells that have their file are not run again::

    python benchmarks/forgetting.py run --sets tldr scifact --systems deep-prompt full
    python benchmarks/forgetting.py table
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import quality

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "forgetting"


def main() -> None:
    """Run cells, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--systems", nargs="+", default=["deep-prompt", "full"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-quality")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tag", default="")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    table()


def run(arguments: argparse.Namespace) -> None:
    """Evaluate every task on every set, in one process: the sets' texts are read once."""
    import torch

    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import evaluate
    from dptdr.io.atomic import write_json
    from dptdr.io.beir import BeirFolder
    from dptdr.model import Backbone, Encoder, load_task

    torch.set_num_threads(arguments.threads)
    backbone = Backbone.load("minilm", device=arguments.device)
    capped = {
        name: capped_test(
            BeirFolder(quality.unpack(name, arguments)),
            test_queries=arguments.queries,
            passages=arguments.passages,
            seed=0,
        )
        for name in arguments.sets
    }
    systems: list[tuple[str, str]] = [("bare", "")]
    systems += [(system, task) for system in arguments.systems for task in arguments.sets]
    for system, task in systems:
        waiting = [name for name in arguments.sets if not path_of(system, task, name).exists()]
        if not waiting:
            continue
        if system == "bare":
            encoder = Encoder(backbone)
        else:
            name = f"{task}-{system}-{arguments.tag}-{arguments.steps}-{arguments.seed}-minilm"
            bundle = arguments.work / "tasks" / name
            if not bundle.exists():
                print(f"{bundle.name}: no such bundle; run benchmarks/quality.py first")
                continue
            encoder = load_task(bundle, backbone=backbone)
        for name in waiting:
            found = quality.searched(encoder, capped[name], arguments)
            result = evaluate(found, capped[name].qrels, measures=("nDCG@10",))
            record = {
                "system": system,
                "task": task,
                "set": name,
                "steps": arguments.steps,
                "seed": arguments.seed,
                "queries": len(capped[name].queries),
                "passages": len(capped[name].passages),
                "nDCG@10": result.measures["nDCG@10"],
                "commit": quality.commit(),
                "machine": quality.machine(),
                "precision": arguments.precision,
            }
            write_json(path_of(system, task, name), record)
            print(system, task, name, round(record["nDCG@10"], 4), flush=True)


def path_of(system: str, task: str, name: str) -> Path:
    """Return where a cell lies."""
    return RESULTS / f"{system}-{task or 'none'}-on-{name}.json"


def table() -> None:
    """Write results/forgetting.md: a row for each tuned task, the bare backbone's first."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    if not records:
        return
    sets = sorted({r["set"] for r in records})
    values: dict[tuple[str, str], dict[str, float]] = {}
    for r in records:
        values.setdefault((r["system"], r["task"]), {})[r["set"]] = r["nDCG@10"]
    bare = values[("bare", "")]
    first = records[0]
    lines = [
        "# Forgetting",
        "",
        f"nDCG@10 of each tuned task on all sets (seed {first['seed']}; {first['steps']} steps; at "
        f"most {first['queries']} test queries over {first['passages']} passages, so the figures "
        "are not those of results/quality.md). Made by `python benchmarks/forgetting.py run`. The "
        "last column is the mean change against the bare backbone over the other sets: what tuning "
        "costs elsewhere. A served task never meets other tasks' queries, and the bare backbone "
        "stays there beside any prompt; fully fine-tuned weights have lost it.",
        "",
        f"| tuned by | on | {' | '.join(sets)} | change on others |",
        "| --- " * (len(sets) + 3) + "|",
        row("bare", "", bare, sets, bare),
    ]
    means: dict[str, list[float]] = {}
    for (system, task), found in sorted(values.items()):
        if system != "bare":
            lines.append(row(system, task, found, sets, bare))
            lost = change(task, found, bare)
            if lost is not None:
                means.setdefault(system, []).append(lost)
    lines += ["", "Mean change on other sets: "]
    lines[-1] += ", ".join(f"{s} {statistics.fmean(v):+.4f}" for s, v in sorted(means.items()))
    lines += ["", "## Origin", ""]
    lines += sorted({f"- commit {r['commit']}, {r['machine']}, {r['precision']}" for r in records})
    (ROOT / "results" / "forgetting.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def change(task: str, found: dict[str, float], bare: dict[str, float]) -> float | None:
    """Return the mean change on the other sets; None while one is missing."""
    others = [name for name in bare if name != task]
    if not others or any(name not in found for name in others):
        return None
    return statistics.fmean(found[name] - bare[name] for name in others)


def row(
    system: str, task: str, found: dict[str, float], sets: list[str], bare: dict[str, Any]
) -> str:
    """Return one row."""
    cells = [f"{found[n]:.3f}" if n in found else "" for n in sets]
    cells = [f"**{c}**" if n == task and c else c for n, c in zip(sets, cells, strict=True)]
    lost = change(task, found, bare) if task else None
    return f"| {system} | {task} | {' | '.join(cells)} | {'' if lost is None else f'{lost:+.4f}'} |"


if __name__ == "__main__":
    main()
