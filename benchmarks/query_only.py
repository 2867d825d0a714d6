"""Show what query-only prompts give up in quality and save in cost: all tasks share one index.

    python benchmarks/quality.py run --sets tldr --systems deep-prompt --tag query-only \
        --option sharing=query-only
    python benchmarks/query_only.py cost --data DATA --work FOLDER
    python benchmarks/query_only.py table

Quality: the cells of benchmarks/quality.py whose tag is ``query-only``, beside the tied prompts of
the same data set, steps and seed. Cost: a corpus encoded and indexed once by the bare backbone for
ten query-only tasks, against once for each of ten tied ones, all of it really done. The cost record
stands in results/query-only.json.
"""

import argparse
import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from dptdr.errors import WrongPrompt
from dptdr.evaluation import paired_test
from dptdr.io.atomic import read_json, write_json
from dptdr.records import Query
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import build_index
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.vectors.documents import Document, Source, read_documents
from dptdr.search.vectors.encoding import encode_folder
from search import machine

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / "results" / "quality"
RESULTS = ROOT / "results" / "query-only.json"
TAG = "query-only"
PROMPT_LENGTH = 16


def cost(args: argparse.Namespace) -> None:
    """Encode and index a corpus for ten tasks, once and ten times."""
    import torch

    torch.set_num_threads(args.threads)
    documents = list(itertools.islice(read_documents(args.data), args.passages))
    shutil.rmtree(args.work, ignore_errors=True)
    sides = {}
    for sharing in ("query-only", "tied"):
        encoders = [tuned(sharing, seed=task) for task in range(args.tasks)]
        sides[sharing] = side(encoders, documents, args.work / sharing)
        print(sharing, sides[sharing], flush=True)
    record = {
        "data": args.data.name,
        "passages": len(documents),
        "tasks": args.tasks,
        "prompt_length": PROMPT_LENGTH,
        "prompt_bytes": sum(t.nbytes for t in tuned("tied", seed=0).method.state().values()),
        "threads": args.threads,
        "sides": sides,
        **machine(),
    }
    write_json(args.json, record)
    table(args)


def tuned(sharing: str, *, seed: int) -> Any:
    """Return an encoder with a random prompt: what it costs does not depend on its numbers."""
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Backbone, Encoder, MethodFactory

    backbone = Backbone.load("minilm")
    config = DeepPromptConfig(prompt_length=PROMPT_LENGTH, initialisation="random", sharing=sharing)
    method = MethodFactory().build("deep-prompt", backbone, config, seed=seed)
    encoder = Encoder(backbone, method=method, name=f"{sharing}-{seed}")
    encoder.only_encode()
    return encoder


def side(encoders: list[Any], documents: list[Document], work: Path) -> dict[str, Any]:
    """Give every task an index that it may search; return how many, their bytes and the time."""
    indexes: list[LocalIndex] = []
    seconds = 0.0
    encoders[0].encode_passages([document.passage.content for document in documents[:50]])
    for number, encoder in enumerate(encoders):
        query = [Query("q", documents[0].passage.content)]
        try:
            search_queries(indexes[0], encoder, queries=query, depth=1)
        except (IndexError, WrongPrompt):
            started = time.perf_counter()
            vectors = work / f"vectors-{number}"
            folder = encode_folder(
                encoder, documents, out=vectors, source=Source(fingerprint="cost")
            )
            assert folder is not None
            index, _ = build_index(folder, out=work / f"index-{number}", kind="hnsw")
            seconds += time.perf_counter() - started
            shutil.rmtree(vectors)
            indexes.append(index)
            search_queries(index, encoder, queries=query, depth=1)
    files = [path for path in work.rglob("*") if path.is_file()]
    return {
        "indexes": len(indexes),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": seconds,
    }


def cells() -> dict[tuple[Any, ...], dict[str, dict[int, dict[str, Any]]]]:
    """Return the cells by data set and sizes, then by system, then by seed."""
    found: dict[tuple[Any, ...], dict[str, dict[int, dict[str, Any]]]] = {}
    for path in sorted(CELLS.glob("*/*.json")):
        cell = read_json(path)
        if cell["system"] == "bare":
            name = "bare"
        elif cell["system"] == "deep-prompt" and cell["tag"] in ("", TAG):
            name = f"{cell['tag'] or 'tied'} {cell['steps']}"
        else:
            continue
        which = (cell["set"], cell["queries"], cell["passages"])
        found.setdefault(which, {}).setdefault(name, {})[cell["seed"]] = cell
    return found


def rows() -> list[str]:
    """Return one row for each data set that has both kinds of prompt."""
    lines = []
    for (name, queries, passages), systems in sorted(cells().items()):
        for system in [s for s in systems if s.startswith(TAG)]:
            steps = system.split()[-1]
            tied, own = systems.get(f"tied {steps}", {}), systems[system]
            seeds = sorted(set(tied) & set(own))
            if not seeds or "bare" not in systems:
                continue
            bare = next(iter(systems["bare"].values()))
            mean = {
                key: per_query([side[seed] for seed in seeds])
                for key, side in (("tied", tied), ("own", own))
            }
            test = paired_test(mean["own"], mean["tied"])
            gain = paired_test(mean["own"], bare["per_query"])
            figures = [bare["measures"]["nDCG@10"]]
            figures += [
                statistics.fmean(side[seed]["measures"]["nDCG@10"] for seed in seeds)
                for side in (tied, own)
            ]
            shown = " | ".join(f"{figure:.4f}" for figure in figures)
            lines.append(
                f"| {name} ({queries} queries, {passages:,} passages) | {steps} | {len(seeds)} "
                f"| {shown} | {against(gain)} | {against(test)} |"
            )
    return lines


def per_query(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return each query's mean over seeds."""
    return {
        q: statistics.fmean(r["per_query"][q] for r in records) for q in records[0]["per_query"]
    }


def against(test: Any) -> str:
    """Write difference and p."""
    p = test.p_randomisation
    return f"{test.mean_difference:+.4f}, p {'< 0.0001' if p < 5e-5 else f'{p:.4f}'}"


def table(args: argparse.Namespace) -> None:
    """Write the page from the cells and the cost record that there are."""
    lines = [
        "# Query-only prompts",
        "",
        "All query-only tasks search one index, made by the bare backbone. Quality: nDCG@10 of "
        "cells of `benchmarks/quality.py` (caps, recipe and seeds in `results/quality.md`); p of "
        "the paired randomisation test. Page made by `python benchmarks/query_only.py table`.",
        "",
        "| data | steps | seeds | bare | tied | query-only | against bare | against tied |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(rows() or ["| none measured yet | | | | | | | |"]),
    ]
    if args.json.is_file():
        record = json.loads(args.json.read_text(encoding="utf-8"))
        ten = {name: record["sides"][name] for name in ("query-only", "tied")}
        lines += [
            "",
            "## Cost",
            "",
            f"{record['tasks']} tasks with prompts of {record['prompt_length']} rows "
            f"({record['prompt_bytes'] / 1e3:.0f} kB each in float32) over {record['passages']:,} "
            f"passages of {record['data']}, encoded and indexed (`hnsw`).",
            "",
            "| prompts | indexes | MB (vectors, texts, graphs) | seconds |",
            "| --- | --- | --- | --- |",
            *(
                f"| {name} | {s['indexes']} | {s['bytes'] / 1e6:.1f} | {s['seconds']:.1f} |"
                for name, s in ten.items()
            ),
            "",
            f"One index takes 1/{ten['tied']['bytes'] / ten['query-only']['bytes']:.1f} of the "
            f"bytes and 1/{ten['tied']['seconds'] / ten['query-only']['seconds']:.1f} of the time.",
            "",
            f"Commit {record['commit']}, {record['cpu']}, {record['cores']} cores of which "
            f"{record['threads']} used.",
        ]
    args.json.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("cost")
    sub.add_argument("--data", type=Path, required=True, help="BEIR folder")
    sub.add_argument("--passages", type=int, default=1000)
    sub.add_argument("--tasks", type=int, default=10)
    sub.add_argument("--threads", type=int, default=1, help="torch threads")
    sub.add_argument("--work", type=Path, required=True, help="folder to make and remove")
    sub.set_defaults(call=cost)
    sub = commands.add_parser("table")
    sub.set_defaults(call=table)
    for sub in commands.choices.values():
        sub.add_argument("--json", type=Path, default=RESULTS, help="where the cost record is")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
