"""What the parts of the server's benchmark share: texts, turns, ratios, an engine, tasks."""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_texts(folders: Sequence[Path], count: int, *, seed: int = 0) -> list[str]:
    """Return queries and passages of BEIR folders, shuffled: short and long side by side."""
    found: list[str] = []
    for folder in folders:
        for file, share in (("queries.jsonl", 1), ("corpus.jsonl", 2)):
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
            most = count * share // (3 * len(folders)) + 1
            for line in random.Random(seed).sample(lines, min(len(lines), most)):
                value = json.loads(line)
                found.append(f"{value.get('title', '')} {value['text']}".strip())
    random.Random(seed).shuffle(found)
    return found[:count]


def take_turns(
    systems: dict[str, Callable[[], Any]], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run all systems in turn, ``rounds`` times; the first round warms up and does not count.

    A system that returns its own ``cpu`` and ``wall`` seconds (it runs in another process) is
    believed; the others are measured here.
    """
    times: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in systems}
    for number in range(rounds + 1):
        order = list(systems.items())
        # Nobody always comes behind the same neighbour.
        random.Random(number).shuffle(order)
        for name, run in order:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            said = run()
            took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            if isinstance(said, dict):
                took = said
            if number:
                for clock, seconds in took.items():
                    times[name][clock].append(seconds)
    return times


def ratio(times: dict[str, Any], one: str, other: str, clock: str = "cpu") -> dict[str, float]:
    """Return the median over rounds of ``one`` over ``other``, and its range."""
    pairs = [a / b for a, b in zip(times[one][clock], times[other][clock], strict=True)]
    return {
        "median": round(statistics.median(pairs), 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
    }


def build_engine(folder: Path, *, threads: int, budget: int = 4 << 30) -> Any:
    """Return a running engine on the packaged encoder."""
    from dptdr.model import Backbone
    from dptdr.serving.engine.engine import Engine
    from dptdr.serving.engine.forward import Forward
    from dptdr.serving.engine.requests import EngineSettings
    from dptdr.serving.tasks.registry import TaskRegistry

    registry = TaskRegistry(Forward(Backbone.load("minilm")), state=folder, budget_bytes=budget)
    return Engine(registry, settings=EngineSettings(threads=threads, check_every=0)).start()


def write_bundle(path: Path, backbone: Any, *, prompt: int, seed: int) -> Path:
    """Write a task with random rows: as costly as a trained one."""
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Encoder
    from dptdr.model.bundle import save_task
    from dptdr.model.methods import DeepPromptMethod

    config = DeepPromptConfig(prompt_length=prompt, initialisation="random", random_scale=0.3)
    save_task(path, Encoder(backbone, method=DeepPromptMethod(backbone, config, seed=seed)))
    return path


def ask(
    engine: Any, texts: Sequence[str], tasks: Sequence[str], *, most_texts: int = 16
) -> np.ndarray:
    """Send requests of 1 to ``most_texts`` texts, tasks in turn, at once; wait for all vectors."""
    generator = random.Random(1)
    futures, start, number = [], 0, 0
    while start < len(texts):
        size = generator.randint(1, most_texts)
        version = engine.registry.resolve(tasks[number % len(tasks)])
        futures.append(
            engine.submit(
                texts[start : start + size], version=version, side="query", timeout_seconds=3600
            )
        )
        start += size
        number += 1
    return np.concatenate([future.result().vectors for future in futures])


def add_tasks(
    engine: Any, folder: Path, count: int, *, prompt: int, name: str = "t"
) -> dict[str, list[float]]:
    """Add tasks of random rows; return the seconds that each took, by clock."""
    took: dict[str, list[float]] = {"wall": [], "processor": []}
    for number in range(count):
        path = write_bundle(folder / "bundle", engine.registry.backbone, prompt=prompt, seed=number)
        began, cpu = time.perf_counter(), time.process_time()
        engine.registry.add(f"{name}{number:03}", path)
        took["wall"].append(time.perf_counter() - began)
        took["processor"].append(time.process_time() - cpu)
    return took


def texts_of(options: argparse.Namespace) -> list[str]:
    """Return the texts that ``prepare`` wrote, or as many as asked for."""
    texts: list[str] = json.loads((options.work / "texts.json").read_text())
    return texts[: options.texts]


def interpreter(options: argparse.Namespace, name: str) -> str:
    """Return the Python that has a peer's packages."""
    given = dict(pair.split("=", 1) for pair in options.peer_python or [])
    return given.get(name, sys.executable)


def batches_of(forward: Any, texts: list[str], rows_of: Callable[[int], Any]) -> list[list[Any]]:
    """Return batches as the engine's queue makes them: neighbours in length, 4,096 tokens."""
    from dptdr.model.encoder import length_sorted_batches
    from dptdr.serving.engine.forward import Row

    ids = forward.tokenize(texts, side="query")
    batches = length_sorted_batches(
        [len(row) for row in ids], token_budget=4096, most_texts=256, most_padding=10**9
    )
    return [[Row(ids[i], rows_of(i)) for i in batch] for batch in batches]


def random_prompts(backbone: Any, count: int, *, prompt: int) -> list[Any]:
    """Return prompts of random rows."""
    import torch

    from dptdr.serving.packing import PromptRows

    geometry, generator = backbone.geometry, torch.Generator().manual_seed(0)
    shape = (2, geometry.layers, prompt, geometry.heads, geometry.head_dim)
    return [PromptRows(*(0.3 * torch.randn(shape, generator=generator))) for _ in range(count)]
