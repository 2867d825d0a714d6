"""One encoder in a process of its own, that encodes when it is told to: our server's peers.

    PYTHON benchmarks/serving_peers.py SYSTEM FOLDER THREADS TEXTS

Peers need packages that do not go together, so each may have another Python; the benchmark lets
them take turns. FOLDER holds ``texts.json`` and what ``serving.py prepare`` made. Each line on
standard input is ``run`` or ``vectors FILE``; each answer is one line of JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]

MAX_TOKENS = 256


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
    """Return the tokenizer that cuts and pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def dptdr(folder: Path, threads: int) -> Encode:
    """Our engine: requests of 1 to 16 texts, all at once."""
    import tempfile

    from serving_tools import ask, build_engine

    engine = build_engine(Path(tempfile.mkdtemp(dir=folder)), threads=threads)
    return lambda texts: ask(engine, texts, ["backbone"])


def sentence_transformers(folder: Path, threads: int) -> Encode:
    """Its own ``encode``."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder / "model"), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, batch_size=32))


def onnxruntime(folder: Path, threads: int) -> Encode:
    """The encoder's graph in ONNX Runtime."""
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
    """The encoder converted to CTranslate2, float32."""
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
    """infinity-emb's engine, torch, float32."""
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


def main() -> None:
    """Load, say so, and follow."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    # What packages print must not come between the answers.
    os.dup2(2, 1)
    texts = json.loads((folder / "texts.json").read_text())[: int(sys.argv[4])]
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


if __name__ == "__main__":
    main()
