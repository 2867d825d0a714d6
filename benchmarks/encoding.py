"""Measure encoding into a vector folder against sentence-transformers' ``encode``.

    python benchmarks/encoding.py run --data DATA --passages 500 --work FOLDER
    python benchmarks/encoding.py run --processes --data DATA --passages 1200 --work FOLDER
    python benchmarks/encoding.py table

Both read the same texts with the same weights, dtype, token limit and number of threads, in turns
within one run; each round gives ratios. Ours is ``dptdr encode`` and includes writing vectors, ids,
texts and checksums to disk. Also measured: the same with a deep prompt of 16 rows, the padded
encoder that training uses, and the largest difference between the two systems' vectors. Each data
set is one record of results/encoding.jsonl.

``--processes`` compares whole processes by their CPU seconds, from the interpreter's start to the
vectors on disk: ``dptdr encode`` with and without a default prompt, and a script of
sentence-transformers. Each also encodes a single passage, which shows what starting costs.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import _lib
from dptdr.records import Document
from dptdr.search.vectors.documents import Source, read_documents
from dptdr.search.vectors.encoding import encode_folder

RESULTS = _lib.RESULTS / "encoding.jsonl"
SYSTEMS = ("sentence-transformers", "dptdr", "dptdr, prompt of 16", "dptdr, padded")
PROCESSES = ("sentence-transformers", "dptdr", "dptdr, default prompt")
SCRIPT = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
corpus, model, tokens, batch_size, out = sys.argv[1:]
with open(corpus, encoding="utf-8") as file:
    texts = [json.loads(line) for line in file]
encoder = SentenceTransformer(model, device="cpu")
encoder.max_seq_length = int(tokens)
vectors = encoder.encode(
    [f"{text['title']} {text['text']}".strip() for text in texts],
    batch_size=int(batch_size), show_progress_bar=False,
)
np.save(out, vectors)
"""


def load_ours(model: str) -> dict[str, Any]:
    from dptdr.model import Backbone, Encoder

    padded, plain = Encoder(Backbone.load(model)), Encoder(Backbone.load(model))
    tuned = _lib.prompted(Backbone.load(model), seed=0, name="prompt", prompt_length=16)
    for encoder in (plain, tuned):
        reason = encoder.eval()
        assert not reason, reason
    return dict(zip(SYSTEMS[1:], (plain, tuned, padded), strict=True))


def ours(encoder: Any, documents: list[Document], work: Path) -> np.ndarray:
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    folder = encode_folder(encoder, documents, out=out, source=Source(fingerprint="benchmark"))
    assert folder is not None
    return np.concatenate([block for _, block in folder.blocks()])


def theirs(peer: Any, documents: list[Document], batch_size: int) -> np.ndarray:
    texts = [document.passage.content for document in documents]
    return np.asarray(peer.encode(texts, batch_size=batch_size, show_progress_bar=False))


def run(args: argparse.Namespace) -> None:
    import torch

    if args.processes:
        run_processes(args)
        return
    torch.set_num_threads(args.threads)
    documents = list(itertools.islice(read_documents(args.data), args.passages))
    encoders = load_ours(args.model)
    plain = encoders["dptdr"]
    peer = _lib.sentence_transformer(args.model)
    peer.max_seq_length = plain.limits.max_passage_tokens
    ids = plain.backbone.tokenize([d.passage.content for d in documents], side="passage")
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    difference = 0.0
    for number in range(args.rounds + 1):
        made = {}
        for name in SYSTEMS if number % 2 else SYSTEMS[::-1]:
            started = time.perf_counter()
            if name in encoders:
                made[name] = ours(encoders[name], documents, args.work)
            else:
                made[name] = theirs(peer, documents, args.batch_size)
            # The first round warms up.
            if number:
                seconds[name].append(time.perf_counter() - started)
        difference = max(difference, float(np.abs(made[SYSTEMS[0]] - made["dptdr"]).max()))
        print({name: round(times[-1], 2) for name, times in seconds.items() if times}, flush=True)
    record = {
        **facts(args, [len(row) for row in ids]),
        "seconds": seconds,
        "per_second": {n: len(documents) / statistics.median(s) for n, s in seconds.items()},
        "times_faster": {
            name: statistics.median(
                peer / own for peer, own in zip(seconds[SYSTEMS[0]], times, strict=True)
            )
            for name, times in seconds.items()
        },
        "largest_difference": difference,
        "load_average": os.getloadavg()[0],
        **_lib.here(),
    }
    _lib.put_records(args.json, [record], ("data", "model"))
    print(json.dumps(record["times_faster"]), difference)
    table(args)


def facts(args: argparse.Namespace, tokens: list[int]) -> dict[str, Any]:
    """Return what every record says, given the tokens of each passage."""
    return {
        "data": args.data.name,
        "model": args.model,
        "passages": len(tokens),
        "mean_tokens": statistics.fmean(tokens),
        "rounds": args.rounds,
        "threads": args.threads,
        "batch_size": args.batch_size,
    }


def run_processes(args: argparse.Namespace) -> None:
    """Compare whole processes, which take turns."""
    from dptdr.model import Backbone, save_task
    from dptdr.model.backbone import resolve

    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    backbone = Backbone.load(args.model)
    tuned = _lib.prompted(backbone, seed=0, name="prompt")
    save_task(args.work / "task", tuned)
    tokens = str(tuned.limits.max_passage_tokens)
    model = str(resolve(args.model) or args.model)
    documents = list(itertools.islice(read_documents(args.data), args.passages))
    ids = backbone.tokenize([d.passage.content for d in documents], side="passage")
    systems = {}
    for count in (len(documents), 1):
        folder = args.work / f"data-{count}"
        folder.mkdir(exist_ok=True)
        corpus = folder / "corpus.jsonl"
        with corpus.open("w", encoding="utf-8") as file:
            for document in documents[:count]:
                passage = document.passage
                record = {"_id": passage.id, "title": passage.title or "", "text": passage.text}
                file.write(json.dumps(record) + "\n")
        encode = ["-m", "dptdr", "encode", str(folder), "--threads", str(args.threads)]
        commands = (
            ["-c", SCRIPT, str(corpus), model, tokens, str(args.batch_size), "vectors.npy"],
            [*encode, "--backbone", args.model, "--out", "plain", "--overwrite"],
            [*encode, "--task", "task", "--backbone", args.model, "--out", "made", "--overwrite"],
        )
        for name, command in zip(PROCESSES, commands, strict=True):
            systems[starting(name) if count == 1 else name] = process(command, args)
    times = _lib.take_turns(systems, rounds=args.rounds)
    theirs = np.load(args.work / "vectors.npy")
    record = {
        "kind": "processes",
        **facts(args, [len(row) for row in ids]),
        "seconds": {name: statistics.median(times[name]["cpu"]) for name in PROCESSES},
        "starting": {name: statistics.median(times[starting(name)]["cpu"]) for name in PROCESSES},
        "times_faster": {name: _lib.ratio(times, PROCESSES[0], name) for name in PROCESSES[1:]},
        "load_average": os.getloadavg()[0],
        **_lib.here(),
    }
    _lib.put_records(args.json, [record], ("kind", "data", "model"))
    print(json.dumps(record), theirs.shape)
    table(args)


def starting(name: str) -> str:
    """Return the name of a system that encodes a single passage."""
    return f"{name}, starting"


def process(command: list[str], args: argparse.Namespace) -> Any:
    """Return what runs a command and says its CPU and wall clock seconds."""

    def run() -> dict[str, float]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=args.work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0, command
        return {"cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - started}

    return run


def table(args: argparse.Namespace) -> None:
    everything = sorted(_lib.read_records(args.json), key=lambda r: r["mean_tokens"])
    records = [record for record in everything if "kind" not in record]
    whole = [record for record in everything if "kind" in record]
    lines = [
        *_lib.kept_words(RESULTS.with_suffix(".md"), "| "),
        "",
        *_lib.table(
            ["data", "passages", "tokens, mean", *SYSTEMS, "difference"],
            [
                [
                    r["data"],
                    f"{r['passages']:,}",
                    f"{r['mean_tokens']:.0f}",
                    *(f"{r['per_second'][s]:.1f} ({r['times_faster'][s]:.2f})" for s in SYSTEMS),
                    f"{r['largest_difference']:.1e}",
                ]
                for r in records
            ],
        ),
    ]
    lines += [
        "",
        "## Whole processes",
        "",
        "CPU seconds from the interpreter's start to the vectors on disk (medians); in brackets, "
        "how many times faster than sentence-transformers, with the lowest and highest round. "
        "Starting: the same with one passage.",
        "",
        *_lib.table(
            ["data", "passages", "tokens, mean", "system", "seconds", "starting"],
            [
                [
                    r["data"],
                    f"{r['passages']:,}",
                    f"{r['mean_tokens']:.0f}",
                    name,
                    f"{r['seconds'][name]:.1f}"
                    + (f" ({_lib.ratio_text(r['times_faster'][name])})" if number else ""),
                    f"{r['starting'][name]:.1f}",
                ]
                for r in whole
                for number, name in enumerate(PROCESSES)
            ],
        ),
    ]
    lines += _lib.origins(
        f"{_lib.made_with(r)} of which {r['threads']} used, {r['rounds']} rounds after one to warm "
        f"up, `{r['model']}`"
        for r in everything
    )
    _lib.write_page(args.json.with_suffix(".md"), lines)


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    counts = {"passages": 500, "rounds": (5, "rounds, after one to warm up")}
    one = {"data": (Path, "BEIR folder"), "model": "minilm"}
    _lib.add_options(sub, **one, **counts, batch_size=(32, "of sentence-transformers"))
    sub.add_argument("--processes", action="store_true", help="compare whole processes")
    _lib.add_options(sub, threads=_lib.VECTORS["threads"], work=_lib.VECTORS["work"])
    _lib.obey(parser)


if __name__ == "__main__":
    main()
