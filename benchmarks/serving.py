"""Measure the server: speed, mixtures of tasks, memory, time to add a task.

    python benchmarks/serving.py prepare --data MEDQUAD TLDR --work WORK
    python benchmarks/serving.py run peers prompts tasks lora memory backends joining --work WORK
    python benchmarks/serving.py run int8 --work WORK --data TLDR --task BUNDLE
    python benchmarks/serving.py page

``prepare`` takes texts from BEIR folders and converts the encoder for the peers; each part of
``run`` writes one record of ``results/serving.jsonl``; ``page`` generates ``results/serving.md``
from them (and from ``serving_soak.py``'s). Each part compares systems that take turns within one
run, so that a busy machine slows all of them alike. Times are CPU seconds of a whole process,
including tokenising; wall clock ratios are given too.

Peers need packages that conflict, so each may have another Python (``--peer-python``) and runs in
its own process: ``serving.py peer SYSTEM WORK THREADS TEXTS``. Each line on its
standard input is ``run`` or ``vectors FILE``; each answer is one line of JSON.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import _lib
from _lib import ratio, take_turns

Encode = Callable[[list[str]], np.ndarray]
MAX_TOKENS = 256

# --- texts, an engine, tasks


DEFAULT = "16 rows, 80 feed-forward rows"
"""The default prompt of MiniLM."""


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


def build_engine(folder: Path, *, threads: int, budget: int = 4 << 30) -> Any:
    """Return a running engine on the packaged encoder."""
    from dptdr.model import Backbone
    from dptdr.serving.engine.engine import Engine
    from dptdr.serving.engine.results import EngineSettings
    from dptdr.serving.forward import Forward
    from dptdr.serving.tasks.registry import TaskRegistry

    registry = TaskRegistry(Forward(Backbone.load("minilm")), state=folder, budget_bytes=budget)
    return Engine(registry, settings=EngineSettings(threads=threads, check_every=0)).start()


def write_bundle(path: Path, backbone: Any, *, prompt: int, seed: int, ffn: int = 0) -> Path:
    """Write a task with random rows."""
    from dptdr.model.bundle import save_task

    rows = {"prompt_length": prompt, "ffn_length": ffn, "random_scale": 0.3}
    save_task(path, _lib.prompted(backbone, seed=seed, **rows))
    return path


def ask(
    engine: Any, texts: Sequence[str], tasks: Sequence[str], *, max_texts: int = 16
) -> np.ndarray:
    """Send requests of 1 to ``max_texts`` texts, tasks in turn, at once; wait for all vectors."""
    generator = random.Random(1)
    futures, start, number = [], 0, 0
    while start < len(texts):
        size = generator.randint(1, max_texts)
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
    engine: Any, folder: Path, count: int, *, prompt: int, ffn: int = 0, name: str = "t"
) -> dict[str, list[float]]:
    """Add tasks of random rows; return the seconds that each took, by clock."""
    took: dict[str, list[float]] = {"wall": [], "processor": []}
    for number in range(count):
        backbone = engine.registry.backbone
        path = write_bundle(folder / "bundle", backbone, prompt=prompt, ffn=ffn, seed=number)
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
    given = dict(pair.split("=", 1) for pair in options.peer_python or [])
    return given.get(name, sys.executable)


def batches_of(forward: Any, texts: list[str], rows_of: Callable[[int], Any]) -> list[list[Any]]:
    """Return batches as the engine's queue makes them: neighbours in length, 4,096 tokens."""
    from dptdr.model.encoder import length_sorted_batches
    from dptdr.serving.forward import BatchRow

    ids = forward.tokenize(texts, side="query")
    batches = length_sorted_batches(
        [len(row) for row in ids], token_budget=4096, max_texts=256, max_padding=10**9
    )
    return [[BatchRow(ids[i], rows_of(i)) for i in batch] for batch in batches]


# --- systems in a process of their own


def mean_of(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean over tokens, scaled to length 1."""
    weights = mask[..., None].astype(np.float32)
    mean = (states * weights).sum(1) / weights.sum(1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def in_batches(texts: list[str], encode: Encode, *, size: int = 32) -> np.ndarray:
    """Encode in batches, longest texts first, as sentence-transformers does."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    made = np.empty((len(texts), 384), dtype=np.float32)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        made[batch] = encode([texts[i] for i in batch])
    return made


def fast_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def dptdr(folder: Path, threads: int) -> Encode:
    """Our engine: requests of 1 to 16 texts, all at once."""
    engine = build_engine(Path(tempfile.mkdtemp(dir=folder)), threads=threads)
    return lambda texts: ask(engine, texts, ["backbone"])


def sentence_transformers(folder: Path, threads: int) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder / "model"), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, batch_size=32))


def onnxruntime(folder: Path, threads: int) -> Encode:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        str(folder / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = fast_tokenizer(folder)

    def encode(texts: list[str]) -> np.ndarray:
        found = tokenizer.encode_batch(texts)
        ids = np.array([one.ids for one in found], dtype=np.int64)
        mask = np.array([one.attention_mask for one in found], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return mean_of(session.run(None, inputs)[0], mask)

    return lambda texts: in_batches(texts, encode)


def ctranslate2(folder: Path, threads: int) -> Encode:
    import ctranslate2 as runtime

    encoder = runtime.Encoder(
        str(folder / "ctranslate2"), device="cpu", compute_type="float32", intra_threads=threads
    )
    tokenizer = fast_tokenizer(folder)

    def encode(texts: list[str]) -> np.ndarray:
        found = tokenizer.encode_batch(texts)
        mask = np.array([one.attention_mask for one in found], dtype=np.int64)
        ids = [one.ids[: sum(one.attention_mask)] for one in found]
        return mean_of(np.array(encoder.forward_batch(ids).last_hidden_state), mask)

    return lambda texts: in_batches(texts, encode)


def infinity(folder: Path, threads: int) -> Encode:
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(threads)
    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(folder / "model"),
            engine="torch",
            device="cpu",
            dtype="float32",
            bettertransformer=False,
            compile=False,
            model_warmup=False,
            batch_size=32,
        )
    )
    loop.run_until_complete(engine.astart())

    def encode(texts: list[str]) -> np.ndarray:
        vectors, _ = loop.run_until_complete(engine.embed(texts))
        return np.array(vectors, dtype=np.float32)

    return encode


def fastembed(folder: Path, threads: int) -> Encode:
    """Fastembed's batching and pooling, with the encoder's graph made here."""
    from fastembed import TextEmbedding

    model = TextEmbedding(
        "sentence-transformers/all-MiniLM-L6-v2",
        specific_model_path=str(folder / "onnx"),
        threads=threads,
    )
    return lambda texts: np.array(list(model.embed(texts, batch_size=32)), dtype=np.float32)


SYSTEMS: dict[str, Callable[[Path, int], Encode]] = {
    "dptdr": dptdr,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "ctranslate2": ctranslate2,
    "infinity-emb": infinity,
    "fastembed": fastembed,
}


def follow(name: str, folder: Path, threads: int, texts_wanted: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    # What packages print must not come between the answers.
    os.dup2(2, 1)
    texts = json.loads((folder / "texts.json").read_text())[:texts_wanted]
    encode = SYSTEMS[name](folder, threads)
    encode(texts[:4])
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        cpu, wall = time.process_time(), time.perf_counter()
        vectors = encode(texts)
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        if word == "vectors":
            np.save(rest, vectors)
        print(json.dumps(took), file=answers, flush=True)
    os._exit(0)


class Peer:
    """A system in a process of its own."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        sizes = [str(options.work), str(options.threads), str(options.texts)]
        self.process = subprocess.Popen(
            [interpreter(options, name), __file__, "peer", name, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            assert self.process.stderr is not None
            raise RuntimeError(self.process.stderr.read().strip().splitlines()[-1][:300])

    def say(self, word: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        took: dict[str, float] = json.loads(self.process.stdout.readline())
        return took


# --- the parts


def peers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(a) The bare encoder, against sentence-transformers, ONNX Runtime and other servers."""
    running: dict[str, Peer] = {}
    absent = {}
    for name in SYSTEMS:
        try:
            running[name] = Peer(name, options)
        except RuntimeError as error:
            absent[name] = str(error)
    vectors = {}
    for name, peer in running.items():
        peer.say(f"vectors {folder / name}.npy")
        vectors[name] = np.load(f"{folder / name}.npy")
    systems = {name: (lambda p=peer: p.say("run")) for name, peer in running.items()}
    times = take_turns(systems, rounds=options.rounds)
    for peer in running.values():
        peer.process.kill()
        peer.process.wait()
    expected = vectors["sentence-transformers"]
    best = {name: min(value["cpu"]) for name, value in times.items()}
    texts = len(texts_of(options))
    return {
        "texts": texts,
        "could not run": absent,
        "systems": {
            name: {
                "texts per processor second": round(texts / best[name], 1),
                "largest difference": float(np.abs(vectors[name] - expected).max()),
                "time over dptdr": ratio(times, name, "dptdr"),
                "wall time over dptdr": ratio(times, name, "dptdr", "wall"),
            }
            for name in running
        },
    }


def prompts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    engine = build_engine(folder / "state", threads=options.threads)
    texts = texts_of(options)
    systems: dict[str, Callable[[], Any]] = {"no prompt": lambda: ask(engine, texts, ["backbone"])}
    for prompt in (8, 32, 96, 128):
        add_tasks(engine, folder, 1, prompt=prompt, name=f"p{prompt}-")
        systems[f"{prompt} rows"] = lambda p=prompt: ask(engine, texts, [f"p{p}-000"])
    add_tasks(engine, folder, 1, prompt=16, ffn=80, name="default-")
    systems[DEFAULT] = lambda: ask(engine, texts, ["default-000"])
    times = take_turns(systems, rounds=options.rounds)
    engine.stop()
    return {
        "texts": len(texts),
        "time over no prompt": {
            name: ratio(times, name, "no prompt") for name in systems if name != "no prompt"
        },
        "default over 96 attention rows": ratio(times, DEFAULT, "96 rows"),
    }


def tasks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(b) 1, 10, 100, 1,000 tasks mixed, a task for each text; (e) the time to add a task."""
    engine = build_engine(folder / "state", threads=options.threads)
    texts = texts_of(options)
    adding = add_tasks(engine, folder, options.tasks, prompt=16, ffn=80)
    names = sorted(engine.registry.tasks())
    systems: dict[str, Callable[[], Any]] = {}
    for count in (1, 10, 100, 1000):
        if count <= options.tasks:
            systems[f"{count}"] = lambda c=count: ask(engine, texts, names[:c], max_texts=1)
    times = take_turns(systems, rounds=options.rounds)
    check = engine.check(texts[:50], rows=48)
    engine.stop()
    return {
        "texts": len(texts),
        "rows of a prompt": DEFAULT,
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
        length_sorted_batches([len(row) for row in ids], token_budget=10**9, max_texts=32)
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
        "dptdr, no prompt": lambda: ask(engine, texts, ["backbone"], max_texts=1),
        "dptdr, one task": lambda: ask(engine, texts, names[:1], max_texts=1),
        "dptdr, 16 tasks mixed": lambda: ask(engine, texts, names, max_texts=1),
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


def hold(kind: str, folder: str, count: str, threads: str) -> None:
    """Hold one model or many tasks in this process, use them all, and print its memory."""
    import torch

    texts = ["a text of ten words like all of the others " * 8] * 64
    if kind == "model":
        torch.set_num_threads(int(threads))
        model = _lib.sentence_transformer()
        ready = time.process_time()
        model.encode(texts, batch_size=32)
    else:
        engine = build_engine(Path(folder), threads=int(threads))
        names = sorted(engine.registry.tasks())[: int(count)]
        ready = time.process_time()
        ask(engine, texts, names or ["backbone"])
        for name in names:
            engine.encode(["warm"], task=name, side="query")
    rss = _lib.resident()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000
    print(json.dumps({"rss": rss, "own": own, "ready": ready}), flush=True)
    os._exit(0)


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
                [sys.executable, __file__, "hold", *arguments, str(options.threads)],
                capture_output=True,
                text=True,
                check=True,
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


def backends(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Packed and padded torch, and ONNX Runtime: 16 tasks in each batch."""
    import torch

    from dptdr.model import Backbone
    from dptdr.serving.forward import Forward
    from dptdr.serving.onnx.int8_forward import OnnxForward

    del folder
    texts = texts_of(options)
    threads = options.threads
    export = options.work / "export"
    forwards: dict[str, Any] = {}
    starts = {}
    for name, make in {
        "torch, packed": lambda b: Forward(b, layout="packed"),
        "torch, padded": lambda b: Forward(b, layout="padded"),
        "ONNX Runtime, int8": lambda b: OnnxForward(b, export, threads=threads),
    }.items():
        backbone = Backbone.load("minilm")
        _ = backbone.fingerprint
        began = time.process_time()
        forwards[name] = make(backbone)
        starts[name] = round(time.process_time() - began, 1)
    rows = _lib.random_prompts(backbone, 16, prompt=32, seed=0)
    batches = {n: batches_of(f, texts, lambda i: rows[i % 16]) for n, f in forwards.items()}
    expected = forwards["torch, padded"]
    alone = torch.stack([expected.single(row) for row in batches["torch, padded"][0]])
    exact = {
        name: float((forward.vectors(batches[name][0]) - alone).abs().max())
        for name, forward in forwards.items()
    }
    systems = {
        name: (lambda f=forward, b=batches[name]: [f.vectors(batch) for batch in b] and None)
        for name, forward in forwards.items()
    }
    times = take_turns(systems, rounds=options.rounds)
    return {
        "texts": len(texts),
        "systems": {
            name: {
                "time over packed": ratio(times, name, "torch, packed"),
                "largest difference from each row alone": exact[name],
                "processor seconds to get ready": starts[name],
            }
            for name in forwards
        },
    }


def joining(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What merging costs over joining, by length of the texts and texts per task."""
    import torch

    from dptdr.model import Backbone
    from dptdr.serving.forward import BatchRow, Forward

    del folder
    forward = Forward(Backbone.load("minilm"), layout="packed")
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt in (32, 128):
        rows = _lib.random_prompts(forward.backbone, 32, prompt=prompt, seed=0)
        for tokens in (8, 16, 32, 128):
            for per_task in (1, 4, 32):
                ids = torch.randint(1000, 9000, (32, tokens), generator=generator).tolist()
                batch = [BatchRow(text, rows[n // per_task]) for n, text in enumerate(ids)]
                ways: dict[str, Any] = {"joined": False, "merged": True, "chosen": None}
                repeats = max(1, 16 // tokens)
                times = take_turns(
                    {
                        way: (
                            lambda m=merge, b=batch, r=repeats: (
                                [forward.vectors(b, merge=m) for _ in range(r)] and None
                            )
                        )
                        for way, merge in ways.items()
                    },
                    rounds=options.rounds,
                )
                found.append(
                    {
                        "rows": prompt,
                        "tokens": tokens,
                        "texts per task": per_task,
                        "merged over joined": ratio(times, "merged", "joined")["median"],
                        "chosen over joined": ratio(times, "chosen", "joined")["median"],
                    }
                )
    return {"cells": found}


def int8(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the graphs cost in nDCG@10: a tuned task on real data, capped."""
    from dptdr.data.subsample import capped_test
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.model import Backbone
    from dptdr.model.bundle import read_manifest
    from dptdr.serving.onnx.exporting import read_export
    from dptdr.serving.onnx.measuring import ndcg_of

    (data,) = options.data
    caps = {"test_queries": options.queries, "passages": options.passages}
    chosen = capped_test(BeirFolder(data), **caps, seed=0)._asdict()
    parts = {name: chosen[name] for name in ("passages", "queries")}
    small = folder / "data"
    write_beir(small, **parts, qrels={"test": chosen["qrels"]}, meta={})
    export = options.work / "export"
    found = ndcg_of(
        Backbone.load("minilm"),
        export,
        task=options.task,
        data=small,
        split="test",
        state=folder / "state",
    )
    settings = None if options.task is None else read_manifest(options.task).settings
    return {
        "data": f"{data.name}, {options.queries} test queries, {options.passages} passages",
        "task": settings,
        "nDCG@10": found,
        "cost": {name: round(found["torch"] - value, 4) for name, value in found.items()},
        "least cosine": read_export(export)["least_cosine"],
    }


def prepare(options: argparse.Namespace) -> None:
    """Write texts, and the encoder as the peers want it; what cannot be made is said."""
    from dptdr.model import Backbone
    from dptdr.model.backbone import resolve
    from dptdr.serving.onnx.exporting import export

    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    texts = read_texts(options.data, options.texts)
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    if not (work / "model").exists():
        shutil.copytree(resolve("minilm"), work / "model")
    if not (work / "onnx" / "model.onnx").exists():
        write_peer_graph(work / "model", work / "onnx")
    if not (work / "export").exists():
        export(Backbone.load("minilm"), work / "export", int8=True)
    converter = interpreter(options, "ctranslate2")
    code = (
        "import ctranslate2.converters as c; "
        f"c.TransformersConverter({str(work / 'model')!r}).convert("
        f"{str(work / 'ctranslate2')!r}, force=True)"
    )
    if subprocess.run([converter, "-c", code], check=False).returncode:
        sys.stderr.write("ctranslate2 cannot convert the encoder; it is left out\n")


def write_peer_graph(model: Path, out: Path) -> None:
    """Write the encoder's plain graph, as sentence-transformers' ONNX backend runs it."""
    import torch
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    bert, tokenizer = loaded[0].auto_model, loaded.tokenizer
    out.mkdir(parents=True, exist_ok=True)
    sample = tokenizer(["a b c", "d"], padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        bert,
        kwargs={name: sample[name] for name in names},
        f=str(out / "model.onnx"),
        dynamo=True,
        dynamic_shapes={name: shape for name in names},
        input_names=list(names),
        external_data=False,
        verbose=False,
    )
    tokenizer.save_pretrained(str(out))
    bert.config.save_pretrained(str(out))


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "peers": peers,
    "prompts": prompts,
    "tasks": tasks,
    "lora": lora,
    "memory": memory,
    "backends": backends,
    "joining": joining,
    "int8": int8,
}


def run(options: argparse.Namespace) -> None:
    """Run the parts that were asked for; each writes its figures, with where they come from."""
    import torch

    torch.set_num_threads(options.threads)
    for part in options.parts:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as name:
            found = PARTS[part](options, Path(name))
        record = {
            "part": part,
            "command": f"python benchmarks/serving.py run {part} --texts {options.texts} "
            f"--rounds {options.rounds}",
            "commit": _lib.commit(),
            "machine": _lib.machine(),
            "threads": options.threads,
            "rounds": options.rounds,
            "seed": 0,
            "load average before and after": [round(load, 1), round(os.getloadavg()[0], 1)],
            **found,
        }
        _lib.put_records(options.out, [record], ("part",))
        print(json.dumps(record), flush=True)


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.argv[1:2] == ["peer"]:
        follow(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:6]))
    if sys.argv[1:2] == ["hold"]:
        hold(*sys.argv[2:6])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["prepare", "run", "page"])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to run")
    parser.add_argument("--data", type=Path, nargs="+", help="BEIR folders")
    parser.add_argument("--task", type=Path, help="tuned bundle, for int8")
    parser.add_argument("--peer-python", nargs="+", help="PEER=INTERPRETER with its packages")
    _lib.add_options(parser, texts=600, rounds=5, threads=1, tasks=1000, queries=500, passages=4000)
    _lib.add_options(parser, work=Path("bench/serving"), out=_lib.RESULTS / "serving.jsonl")
    options = parser.parse_args()
    if options.action == "prepare":
        prepare(options)
    elif options.action == "run":
        run(options)
    else:
        from serving_page import write_page

        write_page(options.out)


if __name__ == "__main__":
    main()
