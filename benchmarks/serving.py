"""Figures of the server: speed, mixtures of tasks, memory, time to add a task.

    python benchmarks/serving.py --data ../shared/data --out serving.json

Everything is a ratio between systems that take turns inside one run, so that a busy machine slows
all of them alike. Times are processor seconds of the whole process (tokenising included); wall
clock ratios stand beside them. Texts are real ones of mixed lengths.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_texts(data: Path, count: int, *, seed: int = 0) -> list[str]:
    """Return queries and passages of medquad and tldr, shuffled: short and long side by side."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("medquad", "tldr"):
            with tarfile.open(data / f"{name}.tar.xz") as archive:
                archive.extractall(folder, filter="data")
            root = next(p.parent for p in Path(folder).rglob("corpus.jsonl") if name in str(p))
            for file, share in (("queries.jsonl", 1), ("corpus.jsonl", 2)):
                lines = (root / file).read_text(encoding="utf-8").splitlines()
                chosen = random.Random(seed).sample(lines, min(len(lines), count * share // 6 + 1))
                for line in chosen:
                    value = json.loads(line)
                    found.append(f"{value.get('title', '')} {value['text']}".strip())
    random.Random(seed).shuffle(found)
    return found[:count]


def take_turns(
    systems: dict[str, Callable[[], Any]], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run all systems in turn, ``rounds`` times; the first round warms up and does not count."""
    times: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in systems}
    for number in range(rounds + 1):
        order = list(systems.items())
        # Nobody always comes behind the same neighbour.
        random.Random(number).shuffle(order)
        for name, run in order:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:
                times[name]["cpu"].append(time.process_time() - cpu)
                times[name]["wall"].append(time.perf_counter() - wall)
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
    from dptdr.serving.bank import Bank
    from dptdr.serving.engine import Engine
    from dptdr.serving.forward import Forward
    from dptdr.serving.pending import EngineSettings

    bank = Bank(Forward(Backbone.load("minilm")), state=folder, budget_bytes=budget)
    return Engine(bank, settings=EngineSettings(threads=threads, check_every=0)).start()


def write_bundle(path: Path, backbone: Any, *, prompt: int, seed: int) -> Path:
    """Write a task with random rows: as costly as a trained one."""
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Encoder
    from dptdr.model.bundle import save_task
    from dptdr.model.methods import DeepPromptMethod

    config = DeepPromptConfig(prompt_length=prompt, initialisation="random", random_scale=0.3)
    save_task(path, Encoder(backbone, method=DeepPromptMethod(backbone, config, seed=seed)))
    return path


def ask(engine: Any, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
    """Send requests of 1 to 16 texts, tasks in turn, all at once; wait for all vectors."""
    generator = random.Random(1)
    futures, start, number = [], 0, 0
    while start < len(texts):
        size = generator.randint(1, 16)
        version = engine.bank.resolve(tasks[number % len(tasks)])
        futures.append(
            engine.submit(
                texts[start : start + size], version=version, side="query", timeout_seconds=3600
            )
        )
        start += size
        number += 1
    return np.concatenate([future.result().vectors for future in futures])


def against_others(texts: list[str], *, rounds: int, threads: int, folder: Path) -> dict[str, Any]:
    """(a) One bare encoder, against sentence-transformers and ONNX Runtime."""
    from sentence_transformers import SentenceTransformer

    from dptdr.model.backbone import resolve

    engine = build_engine(folder / "state-a", threads=threads)
    model = SentenceTransformer(str(resolve("minilm")), device="cpu")
    systems: dict[str, Callable[[], Any]] = {
        "dptdr": lambda: ask(engine, texts, ["backbone"]),
        "sentence-transformers": lambda: model.encode(texts, batch_size=32),
    }
    onnx = onnx_system(model, folder, threads=threads)
    if onnx is not None:
        systems["sentence-transformers' graph in ONNX Runtime"] = lambda: onnx(texts)
    expected = model.encode(texts, batch_size=32)
    exact = {name: float(np.abs(run() - expected).max()) for name, run in systems.items()}
    times = take_turns(systems, rounds=rounds)
    engine.stop()
    best = {name: min(value["cpu"]) for name, value in times.items()}
    return {
        "texts": len(texts),
        "texts per processor second": {n: round(len(texts) / t, 1) for n, t in best.items()},
        "largest difference from sentence-transformers": exact,
        "speed of dptdr over": {
            name: {
                "processor": ratio(times, name, "dptdr"),
                "wall": ratio(times, name, "dptdr", "wall"),
            }
            for name in systems
            if name != "dptdr"
        },
    }


def onnx_system(model: Any, folder: Path, *, threads: int) -> Callable[[Sequence[str]], Any] | None:
    """Return sentence-transformers' graph in ONNX Runtime, with its own batching and pooling."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
        import torch
    except ImportError:
        return None
    bert, tokenizer = model[0].auto_model, model.tokenizer
    file = folder / "st.onnx"
    sample = tokenizer(["a b c", "d"], padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        bert,
        kwargs={name: sample[name] for name in names},
        f=str(file),
        dynamo=True,
        dynamic_shapes={name: shape for name in names},
        input_names=list(names),
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        made = np.empty((len(texts), 384), dtype=np.float32)
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            tokens = tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=model.max_seq_length,
                return_tensors="np",
            )
            states = session.run(None, {name: tokens[name] for name in names})[0]
            mask = tokens["attention_mask"][..., None].astype(np.float32)
            mean = (states * mask).sum(1) / mask.sum(1)
            made[batch] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return made

    return encode


def mixtures(
    texts: list[str], *, rounds: int, threads: int, folder: Path, most_tasks: int
) -> dict[str, Any]:
    """(b) 1, 10, 100, 1000 tasks mixed against one, prompts against none; (e) time to add."""
    engine = build_engine(folder / "state-b", threads=threads)
    backbone = engine.bank.backbone
    adding = []
    for number in range(most_tasks):
        path = write_bundle(folder / "bundle", backbone, prompt=32, seed=number)
        began = time.perf_counter()
        engine.bank.add(f"p32-{number}", path)
        adding.append(time.perf_counter() - began)
    for prompt in (8, 128):
        path = write_bundle(folder / "bundle", backbone, prompt=prompt, seed=1)
        engine.bank.add(f"p{prompt}", path)
        engine.bank.add(f"p{prompt}-second", write_bundle(path, backbone, prompt=prompt, seed=2))
    names = [f"p32-{number}" for number in range(most_tasks)]
    systems: dict[str, Callable[[], Any]] = {"no prompt": lambda: ask(engine, texts, ["backbone"])}
    for prompt in (8, 128):
        systems[f"one task, P={prompt}"] = lambda p=prompt: ask(engine, texts, [f"p{p}"])
    for count in (1, 10, 100, 1000):
        if count <= most_tasks:
            name = "one task, P=32" if count == 1 else f"{count} tasks, P=32"
            systems[name] = lambda c=count: ask(engine, texts, names[:c])
    times = take_turns(systems, rounds=rounds)
    check = engine.check(texts[:50], rows=48)
    hot = engine.bank.hot
    engine.stop()
    return {
        "texts": len(texts),
        "cost over no prompt": {
            name: ratio(times, name, "no prompt") for name in systems if name != "no prompt"
        },
        "cost over one task": {
            name: ratio(times, name, "one task, P=32")
            for name in systems
            if name.endswith("tasks, P=32")
        },
        "self-check": check._asdict(),
        "prompts in memory, MB": round(hot.bytes / 1e6, 1),
        "milliseconds to add a task": {
            "median": round(1000 * statistics.median(adding), 1),
            "90 %": round(1000 * sorted(adding)[int(0.9 * len(adding))], 1),
            "first ten, median": round(1000 * statistics.median(adding[:10]), 1),
            "last ten, median": round(1000 * statistics.median(adding[-10:]), 1),
        },
    }


def against_lora(texts: list[str], *, rounds: int, threads: int, folder: Path) -> dict[str, Any]:
    """(c) 16 tasks in each batch: PEFT's LoRA by ``adapter_names`` against deep prompts."""
    import peft
    import torch

    from dptdr.model import Backbone
    from dptdr.model.encoder import length_sorted_batches

    torch.set_num_threads(threads)
    tasks = 16
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

    def lora(network: Any, *, mixed: bool) -> None:
        with torch.inference_mode():
            for batch in batches:
                tokens = backbone.pad([ids[i] for i in batch])
                names = [f"t{i % tasks}" for i in batch]
                more = {"adapter_names": names} if mixed else {}
                network(input_ids=tokens.ids, attention_mask=tokens.mask, **more)

    engine = build_engine(folder / "state-c", threads=threads)
    for number in range(tasks):
        path = write_bundle(folder / "bundle", engine.bank.backbone, prompt=16, seed=number)
        engine.bank.add(f"t{number}", path)
    one = {i: [f"t{n}" for n in range(i)] for i in (1, tasks)}
    systems: dict[str, Callable[[], Any]] = {
        "plain torch": lambda: lora(plain, mixed=False),
        "PEFT, one LoRA": lambda: lora(model, mixed=False),
        "PEFT, 16 LoRAs mixed": lambda: lora(model, mixed=True),
        "dptdr, no prompt": lambda: ask(engine, texts, ["backbone"]),
        "dptdr, one task": lambda: ask(engine, texts, one[1]),
        "dptdr, 16 tasks mixed": lambda: ask(engine, texts, one[tasks]),
    }
    times = take_turns(systems, rounds=rounds)
    engine.stop()
    return {
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
began = time.perf_counter()
kind, folder, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
texts = ["a text of some words that stands for all others " * 8] * 64
if kind == "model":
    import torch
    torch.set_num_threads(threads)
    from sentence_transformers import SentenceTransformer
    from dptdr.model.backbone import resolve
    model = SentenceTransformer(str(resolve("minilm")), device="cpu")
    ready = time.perf_counter() - began
    model.encode(texts, batch_size=32)
else:
    sys.path.insert(0, "benchmarks")
    from pathlib import Path
    from serving import ask, build_engine
    engine = build_engine(Path(folder), threads=threads)
    names = sorted(engine.bank.tasks())[:count] or ["backbone"]
    ready = time.perf_counter() - began
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


def memory(*, threads: int, folder: Path) -> dict[str, Any]:
    """(d) Memory and start time: 100 tasks, one task, one model."""
    from dptdr.model import Backbone
    from dptdr.model.backbone import resolve

    state = folder / "state-d"
    engine = build_engine(state, threads=threads)
    for number in range(100):
        path = write_bundle(folder / "bundle", engine.bank.backbone, prompt=32, seed=number)
        engine.bank.add(f"t{number:03}", path)
    engine.stop()
    empty = folder / "state-empty"
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(3):
        for name, arguments in {
            "one model in sentence-transformers": ("model", str(state), "0"),
            "dptdr, bare backbone": ("dptdr", str(empty), "0"),
            "dptdr, 100 tasks": ("dptdr", str(state), "100"),
        }.items():
            ended = subprocess.run(
                [sys.executable, "-c", _MEMORY, *arguments, str(threads)],
                capture_output=True,
                text=True,
                check=True,
            )
            found.setdefault(name, []).append(json.loads(ended.stdout.splitlines()[-1]))
    table = {
        name: {
            "resident MB": round(statistics.median(run["rss"] for run in runs), 1),
            "private MB": round(statistics.median(run["own"] for run in runs), 1),
            "seconds to start": round(min(run["ready"] for run in runs), 2),
        }
        for name, runs in found.items()
    }
    weights = Backbone.load("minilm").parameter_count * 4 / 1e6
    one = table["one model in sentence-transformers"]["resident MB"]
    tuned = one + 99 * weights
    files = sum(f.stat().st_size for f in Path(str(resolve("minilm"))).rglob("*") if f.is_file())
    return {
        **table,
        "weights of one model, MB": round(weights, 1),
        "100 fine-tuned models in one process, MB (computed)": round(tuned, 1),
        "100 fine-tuned models on disk, MB (computed)": round(100 * files / 1e6, 1),
        "100 tasks on disk, MB": round(
            sum(f.stat().st_size for f in state.rglob("*.safetensors")) / 1e6, 1
        ),
        "100 tasks over one model": round(table["dptdr, 100 tasks"]["resident MB"] / one, 3),
    }


def main() -> None:
    """Run the parts that were asked for and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--parts", default="a,b,c,d", help="a, b (with e), c, d")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(options.threads)
    texts = read_texts(options.data, options.texts)
    run = {"rounds": options.rounds, "threads": options.threads}
    found: dict[str, Any] = {"load average at start": os.getloadavg()[0], **run}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.parts.split(","):
            if part == "a":
                found["a"] = against_others(texts, folder=folder, **run)
            elif part == "b":
                found["b"] = mixtures(texts, folder=folder, most_tasks=options.tasks, **run)
            elif part == "c":
                found["c"] = against_lora(texts, folder=folder, **run)
            elif part == "d":
                found["d"] = memory(threads=options.threads, folder=folder)
            print(json.dumps({part: found[part]}, indent=1), flush=True)
    found["load average at end"] = os.getloadavg()[0]
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
