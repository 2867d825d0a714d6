"""Parts of the server's benchmark: prompts against none, mixed tasks, LoRA, memory."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _lib
from serving_tools import add_tasks, ask, build_engine, ratio, take_turns, texts_of


def prompts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(b) A prompt of several lengths against none."""
    engine = build_engine(folder / "state", threads=options.threads)
    texts = texts_of(options)
    systems: dict[str, Callable[[], Any]] = {"no prompt": lambda: ask(engine, texts, ["backbone"])}
    for prompt in (8, 32, 128):
        add_tasks(engine, folder, 1, prompt=prompt, name=f"p{prompt}-")
        systems[f"{prompt} rows"] = lambda p=prompt: ask(engine, texts, [f"p{p}-000"])
    times = take_turns(systems, rounds=options.rounds)
    engine.stop()
    return {
        "texts": len(texts),
        "time over no prompt": {
            name: ratio(times, name, "no prompt") for name in systems if name != "no prompt"
        },
    }


def tasks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(b) 1, 10, 100, 1,000 tasks mixed, a task for each text; (e) the time to add a task."""
    engine = build_engine(folder / "state", threads=options.threads)
    texts = texts_of(options)
    adding = add_tasks(engine, folder, options.tasks, prompt=32)
    names = sorted(engine.registry.tasks())
    systems: dict[str, Callable[[], Any]] = {}
    for count in (1, 10, 100, 1000):
        if count <= options.tasks:
            systems[f"{count}"] = lambda c=count: ask(engine, texts, names[:c], most_texts=1)
    times = take_turns(systems, rounds=options.rounds)
    check = engine.check(texts[:50], rows=48)
    engine.stop()
    return {
        "texts": len(texts),
        "rows of a prompt": 32,
        "time over one task": {name: ratio(times, name, "1") for name in systems if name != "1"},
        "self-check": check._asdict(),
        "prompts in memory, MB": round(engine.registry.hot.bytes / 1e6, 1),
        "tasks added": options.tasks,
        "milliseconds to add a task": {
            clock: {
                "median": round(1000 * statistics.median(took), 1),
                "90 %": round(1000 * sorted(took)[int(0.9 * len(took))], 1),
                "median of the last hundred": round(1000 * statistics.median(took[-100:]), 1),
            }
            for clock, took in adding.items()
        },
    }


def lora(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(c) 16 tasks in each batch: PEFT's LoRA by ``adapter_names`` against deep prompts."""
    import peft
    import torch

    from dptdr.model import Backbone
    from dptdr.model.encoder import length_sorted_batches

    tasks = 16
    texts = texts_of(options)
    backbone = Backbone.load("minilm")
    ids = backbone.tokenize(texts, side="query")
    batches = list(
        length_sorted_batches([len(row) for row in ids], token_budget=10**9, most_texts=32)
    )
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    plain = Backbone.load("minilm").model
    model = peft.get_peft_model(Backbone.load("minilm").model, config, adapter_name="t0")
    for number in range(1, tasks):
        model.add_adapter(f"t{number}", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    model.eval()

    def run(network: Any, *, mixed: bool) -> None:
        with torch.inference_mode():
            for batch in batches:
                tokens = backbone.pad([ids[i] for i in batch])
                names = [f"t{i % tasks}" for i in batch]
                more = {"adapter_names": names} if mixed else {}
                network(input_ids=tokens.ids, attention_mask=tokens.mask, **more)

    engine = build_engine(folder / "state", threads=options.threads)
    add_tasks(engine, folder, tasks, prompt=16)
    names = sorted(engine.registry.tasks())
    systems: dict[str, Callable[[], Any]] = {
        "plain torch": lambda: run(plain, mixed=False),
        "PEFT, one LoRA": lambda: run(model, mixed=False),
        "PEFT, 16 LoRAs mixed": lambda: run(model, mixed=True),
        "dptdr, no prompt": lambda: ask(engine, texts, ["backbone"], most_texts=1),
        "dptdr, one task": lambda: ask(engine, texts, names[:1], most_texts=1),
        "dptdr, 16 tasks mixed": lambda: ask(engine, texts, names, most_texts=1),
    }
    times = take_turns(systems, rounds=options.rounds)
    engine.stop()
    return {
        "texts": len(texts),
        "tasks": tasks,
        "PEFT: mixed over one LoRA": ratio(times, "PEFT, 16 LoRAs mixed", "PEFT, one LoRA"),
        "PEFT: mixed over no LoRA": ratio(times, "PEFT, 16 LoRAs mixed", "plain torch"),
        "dptdr: mixed over one task": ratio(times, "dptdr, 16 tasks mixed", "dptdr, one task"),
        "dptdr: mixed over no prompt": ratio(times, "dptdr, 16 tasks mixed", "dptdr, no prompt"),
        "PEFT mixed over dptdr mixed": ratio(
            times, "PEFT, 16 LoRAs mixed", "dptdr, 16 tasks mixed"
        ),
    }


_MEMORY = """
import json, os, sys, time
kind, folder, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
texts = ["a text of some words that stands for all others " * 8] * 64
if kind == "model":
    import torch
    torch.set_num_threads(threads)
    from sentence_transformers import SentenceTransformer
    from dptdr.model.backbone import resolve
    model = SentenceTransformer(str(resolve("minilm")), device="cpu")
    ready = time.process_time()
    model.encode(texts, batch_size=32)
else:
    sys.path.insert(0, "benchmarks")
    from pathlib import Path
    from serving_tools import ask, build_engine
    engine = build_engine(Path(folder), threads=threads)
    names = sorted(engine.registry.tasks())[:count] or ["backbone"]
    ready = time.process_time()
    ask(engine, texts, names)
    for name in names:
        if name != "backbone":
            engine.encode(["warm"], task=name, side="query")
status = open("/proc/self/status").read()
rss = int(status.split("VmRSS:")[1].split()[0]) / 1000
lines = open("/proc/self/smaps_rollup").read().splitlines()
own = sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000
print(json.dumps({"rss": rss, "own": own, "ready": ready}))
os._exit(0)
"""


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(d) Memory and start time: 100 tasks, one task, one model."""
    from dptdr.model.backbone import resolve

    state = folder / "state"
    engine = build_engine(state, threads=options.threads)
    add_tasks(engine, folder, 100, prompt=32)
    weights = engine.registry.backbone.parameter_count * 4 / 1e6
    engine.stop()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(min(3, options.rounds)):
        for name, arguments in {
            "one model in sentence-transformers": ("model", str(state), "0"),
            "dptdr, bare backbone": ("dptdr", str(folder / "empty"), "0"),
            "dptdr, 100 tasks": ("dptdr", str(state), "100"),
        }.items():
            ended = subprocess.run(
                [sys.executable, "-c", _MEMORY, *arguments, str(options.threads)],
                capture_output=True,
                text=True,
                check=True,
                cwd=_lib.ROOT,
            )
            found.setdefault(name, []).append(json.loads(ended.stdout.splitlines()[-1]))
    table = {
        name: {
            "resident MB": round(statistics.median(run["rss"] for run in runs), 1),
            "private MB": round(statistics.median(run["own"] for run in runs), 1),
            "processor seconds to start": round(min(run["ready"] for run in runs), 2),
        }
        for name, runs in found.items()
    }
    one = table["one model in sentence-transformers"]
    many = table["dptdr, 100 tasks"]
    files = sum(f.stat().st_size for f in Path(str(resolve("minilm"))).rglob("*") if f.is_file())
    return {
        "processes": table,
        "weights of one model, MB": round(weights, 1),
        "100 fine-tuned models in one process, MB (computed)": round(
            one["resident MB"] + 99 * weights, 1
        ),
        "100 fine-tuned models on disk, MB (computed)": round(100 * files / 1e6, 1),
        "100 tasks on disk, MB": round(
            sum(f.stat().st_size for f in state.rglob("*.safetensors")) / 1e6, 1
        ),
        "100 tasks over one model, resident": round(many["resident MB"] / one["resident MB"], 3),
        "100 tasks over one model, private": round(many["private MB"] / one["private MB"], 3),
        "100 tasks over one model, start": round(
            many["processor seconds to start"] / one["processor seconds to start"], 3
        ),
    }
