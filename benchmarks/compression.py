"""Show what smaller vectors cost in quality: bytes per vector against nDCG@10, as table and plot.

    python benchmarks/compression.py run --data DATA [DATA ...] --work FOLDER [--task TASK]
    python benchmarks/compression.py table

The whole corpus of each data set is encoded once (into the work folder, resumable) and compressed
in every way. The same test queries are searched exactly in the compressed vectors; where a row says
so, the best 40 hits are rescored with the full vectors. ``--task`` uses the vectors of a tuned
task, such as one trained with ``--matryoshka``. Writes results/compression.jsonl and
docs/images/compression.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import _lib
from dptdr.evaluation import evaluate
from dptdr.io.beir import BeirFolder
from dptdr.records import Hit, Query
from dptdr.search.exact import top_k_of_blocks
from dptdr.search.vectors.compression import compress, shorten

RESULTS = _lib.RESULTS / "compression.jsonl"
PLOT = _lib.ROOT / "docs" / "images" / "compression.png"

# Compression, share of the dimensions, candidates for each hit that are scored again.
WAYS = [
    *(("float32", 1.0, 0), ("float16", 1.0, 0), ("int8", 1.0, 0)),
    *(("binary", 1.0, 0), ("binary", 1.0, 4)),
    *(("float32", 0.5, 0), ("float32", 0.25, 0), ("float32", 0.125, 0), ("float32", 0.125, 4)),
    *(("int8", 0.5, 0), ("int8", 0.25, 0), ("binary", 0.5, 4)),
]


def run(args: argparse.Namespace) -> None:
    import torch

    from dptdr.model import load_encoder

    torch.set_num_threads(args.threads)
    encoder = load_encoder(task=args.task, backbone=args.backbone)
    encoder.eval()
    for data in args.data:
        kind = f"-{args.name}" if args.task else ""
        out = args.work / f"vectors-{data.name}{kind}"
        folder = _lib.vectors_of(data, out=out, load=lambda: encoder)
        full = np.concatenate([block for _, block in folder.blocks()])
        beir, seed = BeirFolder(data), f"compression {args.seed}"
        queries, qrels = _lib.sampled(beir, beir.qrels("test"), args.queries, seed=seed)
        query_vectors = encoder.encode_queries([query.text for query in queries])
        ids = list(folder.all_ids())
        common = {
            "data": data.name,
            "encoder": args.name if args.task else args.backbone,
            "passages": len(ids),
            "queries": len(queries),
            "full_dim": full.shape[1],
            "seed": args.seed,
            **_lib.here(),
        }
        records = [
            common | measured(full, query_vectors, way, queries=queries, ids=ids, qrels=qrels)
            for way in WAYS
        ]
        _lib.put_records(args.json, records, ("data", "encoder"))
        print(json.dumps([(label(r), round(r["nDCG@10"], 4)) for r in records]), flush=True)
    table(args)


def measured(
    full: np.ndarray,
    query_vectors: np.ndarray,
    way: tuple[str, float, int],
    *,
    queries: list[Query],
    ids: list[str],
    qrels: Any,
) -> dict[str, Any]:
    compression, share, factor = way
    small = compress(full, compression=compression, dim=round(full.shape[1] * share))
    cut = shorten(query_vectors, small.dim)
    scores, rows = top_k_of_blocks(cut, small.blocks(), depth=10 * (factor or 1))
    if factor:
        scores = np.stack([full[r] @ query for query, r in zip(query_vectors, rows, strict=True)])
        order = np.lexsort((rows, -scores), axis=1)[:, :10]
        scores, rows = (np.take_along_axis(found, order, axis=1) for found in (scores, rows))
    run = {
        query.id: [Hit(ids[row], score) for row, score in zip(r.tolist(), s.tolist(), strict=True)]
        for query, r, s in zip(queries, rows, scores, strict=True)
    }
    return {
        "compression": compression,
        "dim": small.dim,
        "rescored": factor,
        "bytes": small.bytes / len(full),
        "nDCG@10": evaluate(run, qrels, measures=["nDCG@10"]).measures["nDCG@10"],
    }


def label(r: dict[str, Any]) -> str:
    cut = f", {r['dim']} of {r['full_dim']} numbers" if r["dim"] < r["full_dim"] else ""
    return f"{r['compression']}{cut}{', rescored' if r['rescored'] else ''}"


def table(args: argparse.Namespace) -> None:
    records = _lib.read_records(args.json)
    sets = list(dict.fromkeys((r["data"], r["encoder"]) for r in records))
    ways = list(dict.fromkeys(map(label, records)))
    lines = [*_lib.kept_words(RESULTS.with_suffix(".md"), "| "), ""]
    rows = []
    for way in ways:
        found = {(r["data"], r["encoder"]): r for r in records if label(r) == way}
        cells = []
        for which in sets:
            value = found[which]["nDCG@10"]
            base = next(x for x in records if (x["data"], x["encoder"]) == which)["nDCG@10"]
            cells.append(f"{value:.4f} ({value - base:+.4f})")
        rows.append([way, f"{found[sets[0]]['bytes']:,.0f}", *cells])
    names = [f"{data}, {name}" for data, name in sets]
    lines += _lib.table(["vectors", "bytes each", *names], rows)
    lines += ["", f"![Bytes against nDCG@10](../docs/images/{PLOT.name})"]
    lines += _lib.origins(
        f"{r['data']}: {r['passages']:,} passages, {r['queries']} test queries, seed {r['seed']}, "
        + _lib.made_with(r)
        for r in records
    )
    _lib.write_page(args.json.with_suffix(".md"), lines)
    plot(records, sets, getattr(args, "plot", PLOT))


def plot(records: list[dict[str, Any]], sets: list[tuple[str, str]], path: Path) -> None:
    """Draw bytes against nDCG@10, one panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {"float32": "o", "float16": "s", "int8": "D", "binary": "^"}
    figure, panels = pyplot.subplots(1, len(sets), figsize=(4.2 * len(sets), 4), squeeze=False)
    for panel, which in zip(panels[0], sets, strict=True):
        for r in (r for r in records if (r["data"], r["encoder"]) == which):
            panel.plot(
                r["bytes"],
                r["nDCG@10"],
                styles[r["compression"]],
                color="tab:orange" if r["rescored"] else "tab:blue",
                fillstyle="full" if r["dim"] == r["full_dim"] else "none",
            )
        panel.set(
            xscale="log",
            xticks=[24, 48, 96, 192, 384, 768, 1536],
            xlabel="bytes a vector",
            title=f"{which[0]}, {which[1]}",
        )
        panel.set_xticklabels(["24", "48", "96", "192", "384", "768", "1536"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("nDCG@10")
    marks = [
        pyplot.Line2D([], [], marker=mark, ls="", color="tab:blue", label=name)
        for name, mark in styles.items()
    ]
    marks += [
        pyplot.Line2D([], [], marker="o", ls="", color="tab:orange", label="rescored on full"),
        pyplot.Line2D([], [], marker="o", ls="", mfc="none", color="k", label="fewer numbers"),
    ]
    panels[0][-1].legend(handles=marks, fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date inside: the same records give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    sub.add_argument("--task", type=Path, help="tuned task instead of the bare backbone")
    counts = {"queries": (500, "test queries of each data set"), "seed": 0}
    _lib.add_options(sub, name=("task", "what to call the task"), **counts, **_lib.VECTORS)
    _lib.obey(parser)


if __name__ == "__main__":
    main()
