"""Parts of the server's benchmark: peers, backends, ways to meet a prompt, int8's cost."""

import argparse
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving_tools import batches_of, interpreter, random_prompts, ratio, take_turns, texts_of

PEERS = (
    "dptdr",
    "sentence-transformers",
    "onnxruntime",
    "ctranslate2",
    "infinity-emb",
    "fastembed",
)


class Peer:
    """A system in a process of its own."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        command = [interpreter(options, name), str(Path(__file__).with_name("serving_peers.py"))]
        self.process = subprocess.Popen(
            [*command, name, str(options.work), str(options.threads), str(options.texts)],
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
        """Let it encode; return its seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        took: dict[str, float] = json.loads(self.process.stdout.readline())
        return took


def peers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(a) The bare encoder, against sentence-transformers, ONNX Runtime and other servers."""
    running: dict[str, Peer] = {}
    absent = {}
    for name in PEERS:
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


def backends(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Packed and padded torch, and ONNX Runtime: 16 tasks in each batch."""
    import torch

    from dptdr.model import Backbone
    from dptdr.serving.engine.forward import Forward
    from dptdr.serving.onnx.forward import OnnxForward

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
    rows = random_prompts(backbone, 16, prompt=32)
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
    from dptdr.serving.engine.forward import Forward, Row

    del folder
    forward = Forward(Backbone.load("minilm"), layout="packed")
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt in (32, 128):
        rows = random_prompts(forward.backbone, 32, prompt=prompt)
        for tokens in (8, 16, 32, 128):
            for per_task in (1, 4, 32):
                ids = torch.randint(1000, 9000, (32, tokens), generator=generator).tolist()
                batch = [Row(text, rows[n // per_task]) for n, text in enumerate(ids)]
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
    from dptdr.model import Backbone
    from dptdr.model.bundle import read_manifest
    from dptdr.serving.onnx.exporting import read_export
    from dptdr.serving.onnx.measuring import ndcg_of

    (data,) = options.data
    small = capped(data, folder / "data", queries=options.queries, passages=options.passages)
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


def capped(data: Path, out: Path, *, queries: int, passages: int) -> Path:
    """Write fewer test queries and passages; what the queries' judgements name is among them."""
    (out / "qrels").mkdir(parents=True)
    head, *lines = (data / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    ids = sorted({line.split("\t")[0] for line in lines})
    kept = set(random.Random(0).sample(ids, min(queries, len(ids))))
    lines = [line for line in lines if line.split("\t")[0] in kept]
    (out / "qrels" / "test.tsv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    needed = {line.split("\t")[1] for line in lines}
    for file, wanted, most in (("queries", kept, 0), ("corpus", needed, passages)):
        stored = (data / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
        named = {json.loads(line)["_id"]: line for line in stored}
        chosen = [named[name] for name in named if name in wanted]
        others = sorted(set(named) - wanted)
        more = random.Random(0).sample(others, max(0, min(len(others), most - len(chosen))))
        lines = chosen + [named[name] for name in more]
        (out / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out
