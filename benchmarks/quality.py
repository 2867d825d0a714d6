"""Quality of tuning methods on real tasks, built in parts: results/quality/*.json, then a table.

Each cell (data set, system, seed) is one process and one JSON file; a cell that has its file is not
run again, so the command can be stopped and started at will::

    python benchmarks/quality.py run --sets tldr medquad --systems bm25 bare deep-prompt full
    python benchmarks/quality.py table

Evaluation sets are capped and seeded; training uses the whole train split.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "quality"
SAMPLES = ("python-code", "python-api")
MEASURES = ("nDCG@10", "RR@10", "R@100")


def main() -> None:
    """Run cells, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "cell"):
        sub = commands.add_parser(name)
        sub.add_argument("--sets", nargs="+", required=name == "run", default=[])
        sub.add_argument("--systems", nargs="+", required=name == "run", default=[])
        sub.add_argument("--seeds", nargs="+", type=int, default=[0])
        sub.add_argument("--set")
        sub.add_argument("--system")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
        sub.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-quality")
        sub.add_argument("--steps", type=int, default=150)
        sub.add_argument("--queries", type=int, default=500)
        sub.add_argument("--passages", type=int, default=4000)
        sub.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
        sub.add_argument("--threads", type=int, default=1)
        sub.add_argument("--device", default="cpu")
        sub.add_argument("--encoder", default="minilm", help="name or folder of the backbone")
        sub.add_argument("--jobs", type=int, default=1)
        sub.add_argument("--option", nargs="*", default=[], help="key=value of the recipe")
        sub.add_argument("--tag", default="", help="name of a variant of the recipe")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    elif arguments.command == "cell":
        cell(arguments)
    else:
        table()


def run(arguments: argparse.Namespace) -> None:
    """Run all missing cells, some at a time."""
    waiting = []
    for data in arguments.sets:
        unpack(data, arguments)
        for system in arguments.systems:
            seeds = [0] if system in ("bm25", "bare") else arguments.seeds
            for seed in seeds:
                if not cell_path(data, system, seed, arguments).exists():
                    waiting.append((data, system, seed))
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            data, system, seed = waiting.pop(0)
            print(f"{time.strftime('%H:%M:%S')} {data} {system} seed {seed}", flush=True)
            running.append(subprocess.Popen(cell_command(data, system, seed, arguments)))
        time.sleep(0.5)
        running = [process for process in running if process.poll() is None]
    table()


def cell_command(data: str, system: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Return the command of one cell."""
    command = [sys.executable, __file__, "cell", "--set", data, "--system", system]
    names = ("steps", "queries", "passages", "precision", "threads", "data", "work", "tag")
    for name in (*names, "device", "encoder"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return [*command, "--seed", str(seed), "--option", *arguments.option]


def cell_path(data: str, system: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return where a cell's result lies."""
    caps = f"{arguments.queries}q-{arguments.passages}p"
    if arguments.encoder != "minilm":
        caps += f"-{Path(arguments.encoder).name}"
    trained = "" if system in ("bm25", "bare") else f"-{arguments.steps}steps"
    tag = f"-{arguments.tag}" if arguments.tag and trained else ""
    return RESULTS / f"{data}-{caps}" / f"{system}{tag}{trained}-seed{seed}.json"


def unpack(name: str, arguments: argparse.Namespace) -> Path:
    """Make a data set ready and return its folder."""
    folder: Path = arguments.work / "data" / name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name in SAMPLES:
        subprocess.run(
            [sys.executable, "-m", "dptdr", "data", "sample", name, "--out", str(folder)],
            check=True,
        )
        return folder
    with tarfile.open(arguments.data / f"{name}.tar.xz") as archive:
        archive.extractall(folder.parent, filter="data")
    return folder


def cell(arguments: argparse.Namespace) -> None:
    """Train where there is something to train, evaluate, write the cell's file."""
    import torch

    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import evaluate
    from dptdr.io.atomic import write_json
    from dptdr.io.beir import BeirFolder

    torch.set_num_threads(arguments.threads)
    folder = BeirFolder(unpack(arguments.set, arguments))
    capped = capped_test(
        folder, test_queries=arguments.queries, passages=arguments.passages, seed=0
    )
    record: dict[str, Any] = {
        "set": arguments.set,
        "system": arguments.system,
        "tag": arguments.tag,
        "seed": arguments.seed,
        "queries": len(capped.queries),
        "passages": len(capped.passages),
        "precision": arguments.precision,
        "threads": arguments.threads,
        "encoder": Path(arguments.encoder).name,
        "device": arguments.device,
        "machine": machine(),
        "commit": commit(),
    }
    if arguments.system == "bm25":
        from dptdr.search.bm25 import Bm25Index

        run = Bm25Index.build(capped.passages).search(capped.queries, depth=100)
    else:
        encoder = tuned(arguments, folder, record)
        run = searched(encoder, capped, arguments)
    result = evaluate(run, capped.qrels, measures=MEASURES)
    record["measures"] = dict(result.measures)
    record["per_query"] = {q: round(v, 5) for q, v in sorted(result.per_query["nDCG@10"].items())}
    record["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path = cell_path(arguments.set, arguments.system, arguments.seed, arguments)
    write_json(path, record)
    print(path.name, {k: round(v, 4) for k, v in record["measures"].items()}, flush=True)


def tuned(arguments: argparse.Namespace, folder: Any, record: dict[str, Any]) -> Any:
    """Return the bare encoder, or one that was trained for this cell."""
    from dptdr.config.methods import config_from
    from dptdr.config.training import TrainingConfig
    from dptdr.model import Backbone, Encoder, load_task
    from dptdr.training.train import load_data, train_task

    backbone = Backbone.load(arguments.encoder, device=arguments.device)
    if arguments.system == "bare":
        return Encoder(backbone)
    recipe, settings = options(arguments.option)
    config = TrainingConfig(
        steps=arguments.steps, seed=arguments.seed, precision=arguments.precision, **recipe
    )
    if arguments.system == "peft-prefix":
        return peft_tuned(backbone, folder, config, record)
    method, method_config = config_from(arguments.system, settings)
    name = f"{arguments.set}-{arguments.system}-{arguments.tag}-{arguments.steps}-{arguments.seed}"
    out = arguments.work / "tasks" / f"{name}-{record['encoder']}"
    began, cpu = time.monotonic(), time.process_time()
    result = train_task(
        load_data(folder, config),
        out,
        backbone=backbone,
        method_name=method,
        method_config=method_config,
        config=config,
    )
    # While training alone; the evaluation's memory comes on top in peak_memory_mb.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record |= {
        "steps": arguments.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.rate_for(method),
        "settings": result.manifest.settings,
        "trained_parameters": result.manifest.trained_parameters,
        "training_seconds": result.seconds,
        "seconds_per_step": result.seconds / arguments.steps,
        "wall_seconds": time.monotonic() - began,
        "processor_seconds": time.process_time() - cpu,
        "training_peak_memory_mb": peak,
        "best_step": result.best_step,
        "dev": {str(step): m["nDCG@10"] for step, m in result.history.items()},
        "bare_dev": result.bare["nDCG@10"],
    }
    return load_task(out, backbone=backbone)


def peft_tuned(backbone: Any, folder: Any, config: Any, record: dict[str, Any]) -> Any:
    """Return an encoder with PEFT's prefix, of as many rows as the default prompt."""
    from dataclasses import replace

    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Encoder
    from dptdr.training.train import load_data
    from peft_prefix import train_peft_prefix

    config = replace(config, learning_rate=config.learning_rate or 1e-2)
    rows = DeepPromptConfig().prompt_length
    method, history, seconds = train_peft_prefix(
        backbone, load_data(folder, config), config, prompt_length=rows
    )
    record |= {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "settings": {"prompt_length": rows},
        "trained_parameters": sum(p.numel() for p in method.trained().values()),
        "training_seconds": seconds,
        "seconds_per_step": seconds / config.steps,
        "training_peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "dev": {str(step): value for step, value in history.items()},
    }
    encoder: Any = Encoder(backbone, method=method)
    return encoder


def options(pairs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split key=value pairs into training settings and method settings."""
    from dptdr.config.training import TrainingConfig

    recipe, settings = {}, {}
    for pair in pairs:
        key, text = pair.split("=", 1)
        value: Any = text
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(text)
        (recipe if key in TrainingConfig.__dataclass_fields__ else settings)[key] = value
    return recipe, settings


def searched(encoder: Any, capped: Any, arguments: argparse.Namespace) -> Any:
    """Return the run over the capped set."""
    import torch

    from dptdr.search.retrieve import retrieve

    kind = arguments.device.split(":")[0]
    enabled = arguments.precision == "bfloat16"
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled):
        return retrieve(encoder, queries=capped.queries, passages=capped.passages, depth=100)


def machine() -> str:
    """Describe the processor."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the commit that is checked out."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def table() -> None:
    """Write the pages from all cells."""
    import quality_pages

    quality_pages.write(RESULTS, ROOT / "results" / "quality.md")


if __name__ == "__main__":
    main()
