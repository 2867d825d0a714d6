"""Measure the gain of fusing BM25 with vectors, its weight tuned on queries that are not reported.

    python benchmarks/hybrid.py run --data DATA [DATA ...] --work FOLDER
    python benchmarks/hybrid.py table

The vectors are those of the bare backbone over the whole corpus (encoded once into the work
folder). The weight of each fusion method is tuned on queries of the train split; results are on
test queries, with a paired test against the vectors alone. Writes results/hybrid.jsonl.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import _lib
from dptdr.evaluation import evaluate, paired_test
from dptdr.io.beir import BeirFolder
from dptdr.records import Hit, Qrels, Query, Run
from dptdr.search.exact import top_k_of_blocks
from dptdr.search.hybrid import FUSIONS, fuse, tune_weights
from dptdr.search.vectors.documents import read_documents, source_of
from dptdr.search.vectors.encoding import encode_folder
from dptdr.search.vectors.folder import VectorFolder

RESULTS = _lib.RESULTS / "hybrid.jsonl"
DEPTH = 100


def run(args: argparse.Namespace) -> None:
    import torch

    from dptdr.model import load_encoder
    from dptdr.search.bm25 import Bm25Index

    torch.set_num_threads(args.threads)
    encoder = load_encoder(backbone=args.backbone)
    encoder.eval()
    for data in args.data:
        out = args.work / f"vectors-{data.name}"
        if not (out / "manifest.json").is_file():
            encode_folder(encoder, read_documents(data), out=out, source=source_of(data))
        folder = VectorFolder(out)
        words = Bm25Index.build(document.passage for document in folder.all_documents())
        runs: dict[str, tuple[Run, Run]] = {}
        judged: dict[str, Qrels] = {}
        for split in ("train", "test"):
            queries, judged[split] = sampled(data, split, args.queries, seed=args.seed)
            dense = searched(folder, encoder, queries)
            runs[split] = (dense, words.search(queries, depth=DEPTH))
        record = {
            "data": data.name,
            "backbone": args.backbone,
            "passages": folder.count,
            "tuned_on": len(judged["train"]),
            "queries": len(judged["test"]),
            "seed": args.seed,
            "systems": systems(runs, judged),
            **_lib.here(),
        }
        _lib.put_records(args.json, [record], ("data",))
        print(json.dumps(record), flush=True)
    table(args)


def sampled(data: Path, split: str, count: int, *, seed: int) -> tuple[list[Query], Qrels]:
    """Return queries of a split with a positive, at most so many."""
    folder = BeirFolder(data)
    judged = {name: g for name, g in folder.qrels(split).items() if max(g.values()) > 0}
    chosen = sorted(judged)
    random.Random(f"hybrid {split} {seed}").shuffle(chosen)
    kept = set(chosen[:count])
    queries = [query for query in folder.queries() if query.id in kept]
    return queries, {query.id: judged[query.id] for query in queries}


def searched(folder: VectorFolder, encoder: Any, queries: list[Query]) -> Run:
    vectors = encoder.encode_queries([query.text for query in queries])
    scores, rows = top_k_of_blocks(vectors, folder.blocks(), depth=DEPTH)
    return {
        query.id: [Hit(*pair) for pair in zip(folder.ids(r), s.tolist(), strict=True)]
        for query, r, s in zip(queries, rows, scores, strict=True)
    }


def systems(runs: dict[str, tuple[Run, Run]], judged: dict[str, Qrels]) -> list[dict[str, Any]]:
    """Return nDCG@10 of vectors, words, and every fusion, even and tuned."""
    dense, words = runs["test"]
    base = evaluate(dense, judged["test"], measures=["nDCG@10"])
    found = [
        {"system": "vectors", "weight": 1.0, "nDCG@10": base.measures["nDCG@10"]},
        one("BM25", 0.0, words, judged["test"], base=base),
    ]
    for fusion in FUSIONS:
        tuned = tune_weights(runs["train"], judged["train"], fusion=fusion)  # type: ignore[arg-type]
        for name, weight in (("even", 0.5), ("tuned", tuned.weights[0])):
            merged = fuse(
                runs["test"],
                fusion=fusion,  # type: ignore[arg-type]
                weights=(weight, 1 - weight),
                depth=DEPTH,
            )
            found.append(one(f"{fusion}, {name}", weight, merged, judged["test"], base=base))
    return found


def one(name: str, weight: float, run: Run, qrels: Qrels, *, base: Any) -> dict[str, Any]:
    result = evaluate(run, qrels, measures=["nDCG@10"])
    test = paired_test(result.per_query["nDCG@10"], base.per_query["nDCG@10"])
    return {
        "system": name,
        "weight": weight,
        "nDCG@10": result.measures["nDCG@10"],
        "difference": test.mean_difference,
        "p": test.p_randomisation,
    }


def table(args: argparse.Namespace) -> None:
    """Write the page beside the records."""
    records = _lib.read_records(args.json)
    lines = [
        *_lib.kept_words(RESULTS.with_suffix(".md"), "| "),
        "",
        f"| system | {' | '.join(r['data'] for r in records)} |",
        f"| --- | {' | '.join('---' for _ in records)} |",
    ]
    for place, first in enumerate(records[0]["systems"]):
        cells = []
        for r in records:
            s = r["systems"][place]
            more = ""
            if "p" in s:
                p = "< 0.0001" if s["p"] < 5e-5 else f"{s['p']:.4f}"
                more = f" ({s['weight']:g}; {s['difference']:+.4f}, p {p})"
            cells.append(f"{s['nDCG@10']:.4f}{more}")
        lines.append(f"| {first['system']} | {' | '.join(cells)} |")
    lines += ["", "## Origin", ""]
    lines += [
        f"- {r['data']}: {r['passages']:,} passages, {r['queries']} test queries, {r['tuned_on']} "
        f"to tune on, seed {r['seed']}, `{r['backbone']}`, commit {r['commit']}, {r['cpu']}, "
        f"{r['cores']} cores"
        for r in records
    ]
    _lib.write_page(args.json.with_suffix(".md"), lines)


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    counts = {"queries": (500, "queries of each split at most"), "seed": 0}
    _lib.add_options(sub, **counts, **_lib.VECTORS)
    _lib.obey(parser)


if __name__ == "__main__":
    main()
