r"""What prompts pretrained without labels bring: results/prompt-only.jsonl, the page from it.

    python benchmarks/prompt_only.py run --sets scifact tldr --max-tokens 64
    python benchmarks/prompt_only.py run --sets tldr --set anchor=0 --set ffn_learning_rate=4e-4
    python benchmarks/prompt_only.py table

Zero-shot nDCG@10 on queries of the dev split (the train split where there is none), which the
pretraining does not see, over a capped corpus, which it does see: the bare encoder, BM25, both
fused, and the prompt. ``--set`` takes a setting of ``dptdr pretrain``. A cell that has its line is
not run again, and a pretraining that was stopped goes on. Prompts that the product would refuse are
measured as well, and marked.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "prompt-only.jsonl"
MEASURE = "nDCG@10"
CELL = ("set", "encoder", "queries_cap", "passages_cap", "max_tokens")
KEY = (*CELL, "system", "settings", "seed")


def run(args: argparse.Namespace) -> None:
    import dptdr
    from dptdr.data.subsample import capped_test
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.search.bm25 import Bm25Index
    from dptdr.search.hybrid import fuse

    settings = {k: json.loads(v) for k, _, v in (text.partition("=") for text in args.set)}
    for name in args.sets:
        folder = BeirFolder(_lib.data_folder(name, data=args.data, work=args.work))
        split = "dev" if folder.has_split("dev") else "train"
        caps = {"test_queries": args.queries, "passages": args.passages, "split": split}
        dev = capped_test(folder, **caps, seed=0)
        cell = {
            "set": name,
            "encoder": Path(args.encoder).name,
            "queries_cap": args.queries,
            "passages_cap": args.passages,
            "max_tokens": args.max_tokens,
        }
        prompt = cell | {"system": "prompt", "settings": settings, "seed": args.seed}
        done = {_lib.key_of(record, KEY) for record in _lib.read_records(args.json)}
        if _lib.key_of(cell | {"system": "bare"}, KEY) not in done:
            bare = searched(dptdr.load(args.encoder, device=args.device), dev, args)
            words = Bm25Index.build(dev.passages).search(dev.queries, depth=100)
            fused = fuse([bare, words], fusion="min-max")
            for system, found in (("bare", bare), ("bm25", words), ("fused", fused)):
                _lib.append_record(args.json, cell | {"system": system} | measured(found, dev))
        if _lib.key_of(prompt, KEY) in done:
            continue
        data = args.work / f"capped-{name}-{args.passages}"
        write_beir(data, passages=dev.passages, queries=[], qrels={}, meta={})
        out = args.work / "prompts" / _lib.short_key(prompt, KEY)
        began = time.process_time()
        result = dptdr.pretrain(
            data,
            out=out,
            backbone=args.encoder,
            prompt_only=True,
            force=True,
            device=args.device,
            threads=args.threads,
            seed=args.seed,
            span_tokens=args.max_tokens,
            **settings,
        )
        assert result is not None
        ends = (result.bare, result.history[result.best_step])
        facts = {
            "label_free": [round(measures[MEASURE], 4) for measures in ends],
            "best_step": result.best_step,
            "processor_seconds": round(time.process_time() - began),
        }
        found = searched(dptdr.load(out, backbone=args.encoder, device=args.device), dev, args)
        _lib.append_record(args.json, prompt | measured(found, dev) | facts)
        for made in (out, result.run_folder):
            shutil.rmtree(made)
    table(args)


def searched(encoder: Any, dev: Any, args: argparse.Namespace) -> Any:
    import torch

    from dptdr.model import Encoder
    from dptdr.model.encoder import Limits
    from dptdr.search.retrieve import retrieve

    torch.set_num_threads(args.threads)
    limits = Limits(max_query_tokens=args.max_tokens, max_passage_tokens=args.max_tokens)
    cut = Encoder(encoder.backbone, method=encoder.method, limits=limits, name=encoder.name)
    return retrieve(cut, queries=dev.queries, passages=dev.passages, depth=100)


def measured(found: Any, dev: Any) -> _lib.Record:
    from dptdr.evaluation import evaluate

    result = evaluate(found, dev.qrels, measures=[MEASURE])
    return {
        MEASURE: round(result.measures[MEASURE], 4),
        "queries": len(dev.queries),
        "passages": len(dev.passages),
        "commit": _lib.commit(),
        "machine": _lib.machine(),
        **_lib.compact(result.per_query[MEASURE]),
    }


def table(args: argparse.Namespace) -> None:
    records = _lib.read_records(args.json)
    lines = _lib.kept_words(RESULTS.with_suffix(".md"))
    for key in dict.fromkeys(_lib.key_of(record, CELL) for record in records):
        own = [record for record in records if _lib.key_of(record, CELL) == key]
        bare = [record for record in own if record["system"] == "bare"]
        rows = []
        for record in own:
            name, free, seconds = record["system"], "", ""
            if name == "prompt":
                more = [f"{k} {v}" for k, v in sorted(record["settings"].items())]
                before, after = record["label_free"]
                name = ", ".join([name, *more, f"seed {record['seed']}"])
                free = f"{before:.4f} -> {after:.4f}" + (" (refused)" if after <= before else "")
                seconds = f"{record['processor_seconds']:,}"
            against = _lib.difference([record], bare)
            rows.append([name, f"{record[MEASURE]:.4f}", against, free, seconds])
        first = own[0]
        lines += [
            "",
            f"## {first['set']}, {first['encoder']} ({first['queries']} queries, "
            f"{first['passages']:,} passages, texts of {first['max_tokens']} tokens)",
            "",
            *_lib.table(["system", MEASURE, "against bare", "label-free", "CPU seconds"], rows),
        ]
    _lib.write_page(args.json.with_suffix(".md"), lines + _lib.origin(records))


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    sub.add_argument("--sets", nargs="+", required=True, help="names of data sets")
    sub.add_argument("--set", action="append", default=[], help="key=value of dptdr pretrain")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--queries", type=int, default=300)
    sub.add_argument("--passages", type=int, default=2500)
    sub.add_argument("--max-tokens", type=int, default=80)
    sub.add_argument("--encoder", default="minilm", help="name or folder of the backbone")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--threads", type=int, default=1)
    sub.add_argument("--data", type=Path, default=_lib.SHARED_DATA, help="where data sets are")
    sub.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-prompt-only")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
