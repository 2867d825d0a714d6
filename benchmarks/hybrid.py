"""Measure the gain of fusing BM25 with vectors, its weight tuned on queries that are not reported.

    python benchmarks/hybrid.py run --data DATA [DATA ...] --work FOLDER
    python benchmarks/hybrid.py table

The vectors are those of the bare backbone over the whole corpus (encoded once into the work
folder). The weight of each fusion method is tuned on queries of the train split; results are on
test queries, with a paired test against the vectors alone. Writes results/hybrid.jsonl.
"""

import argparse
import json
from typing import Any

import _lib
from dptdr.evaluation import evaluate, paired_test
from dptdr.io.beir import BeirFolder
from dptdr.records import Hit, Qrels, Query, Run
from dptdr.search.exact import top_k_of_blocks
from dptdr.search.hybrid import FUSIONS, fuse, tune_weights
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
        folder = _lib.vectors_of(data, out=out, load=lambda: encoder)
        words = Bm25Index.build(document.passage for document in folder.all_documents())
        runs: dict[str, tuple[Run, Run]] = {}
        judged: dict[str, Qrels] = {}
        for split in ("train", "test"):
            beir, seed = BeirFolder(data), f"hybrid {split} {args.seed}"
            positive = {name: g for name, g in beir.qrels(split).items() if max(g.values()) > 0}
            queries, judged[split] = _lib.sampled(beir, positive, args.queries, seed=seed)
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
    rows = []
    for place, first in enumerate(records[0]["systems"]):
        cells = []
        for r in records:
            s = r["systems"][place]
            more = ""
            if "p" in s:
                more = f" ({s['weight']:g}; {s['difference']:+.4f}, p {_lib.p_text(s['p'])})"
            cells.append(f"{s['nDCG@10']:.4f}{more}")
        rows.append([first["system"], *cells])
    lines = [*_lib.kept_words(RESULTS.with_suffix(".md"), "| "), ""]
    lines += _lib.table(["system", *(r["data"] for r in records)], rows)
    lines += ["", "## Origin", ""]
    lines += [
        f"- {r['data']}: {r['passages']:,} passages, {r['queries']} test queries, {r['tuned_on']} "
        f"to tune on, seed {r['seed']}, `{r['backbone']}`, {_lib.made_with(r)}"
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
