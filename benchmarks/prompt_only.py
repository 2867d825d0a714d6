r"""Measure the gain of prompts pretrained without labels: results/prompt-only.jsonl and its page.

    python benchmarks/prompt_only.py run --sets scifact tldr --max-tokens 64
    python benchmarks/prompt_only.py run --sets tldr --set anchor=0 --set ffn_learning_rate=4e-4
    python benchmarks/prompt_only.py run --sets tldr --labels 50 200 800
    python benchmarks/prompt_only.py table

Zero-shot nDCG@10 on queries of the dev split (the train split where there is none), which the
pretraining does not see, over a capped corpus, which it does see: the bare encoder, BM25, both
fused, pseudo-relevance feedback (half of the mean vector of the best three passages, added to the
query's; Li et al. 2021, arXiv 2108.11044), and the prompt. ``--set`` takes a setting of ``dptdr
pretrain``. Cells with a line are not run again; stopped pretraining is resumed. Prompts that
``dptdr pretrain`` would not write are measured too, and marked.

With ``--labels``, the prompt is pretrained on the capped corpus of the test split and then trained
on so many labelled train queries, beside training from the bare encoder, both by the product's
defaults. Zero labels: no training.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "prompt-only.jsonl"
MEASURE = "nDCG@10"
CELL = ("set", "encoder", "queries_cap", "passages_cap", "max_tokens")
KEY = (*CELL, "system", "settings", "seed", "labels")


def run(args: argparse.Namespace) -> None:
    import dptdr
    from dptdr.data.subsample import capped_test
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.search.bm25 import Bm25Index
    from dptdr.search.hybrid import fuse

    settings = {k: json.loads(v) for k, _, v in (text.partition("=") for text in args.set)}
    for name in args.sets:
        folder = BeirFolder(_lib.data_folder(name, data=args.data, work=args.work))
        if args.labels:
            run_labels(folder, settings, args)
            continue
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
        if _lib.key_of(cell | {"system": "feedback"}, KEY) not in done:
            bare, feedback = searched_twice(dptdr.load(args.encoder, device=args.device), dev, args)
            words = Bm25Index.build(dev.passages).search(dev.queries, depth=100)
            baselines = {
                "bare": bare,
                "bm25": words,
                "fused": fuse([bare, words], fusion="min-max"),
                "feedback": feedback,
            }
            for system, found in baselines.items():
                record = cell | {"system": system}
                if _lib.key_of(record, KEY) not in done:
                    _lib.append_record(args.json, record | measured(found, dev))
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


def run_labels(folder: Any, settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train from the encoder and from a pretrained prompt, on few labelled queries."""
    import dptdr
    from dptdr.data.subsample import capped_test
    from dptdr.io.beir import write_beir

    test = capped_test(folder, test_queries=args.queries, passages=args.passages, seed=0)
    # A prompt reads the corpus to be searched, never its queries.
    data = args.work / f"test-{folder.path.name}-{args.passages}"
    write_beir(data, passages=test.passages, queries=[], qrels={}, meta={})
    key = {
        "set": folder.path.name,
        "encoder": Path(args.encoder).name,
        "queries_cap": args.queries,
        "passages_cap": args.passages,
        "max_tokens": args.max_tokens,
        "settings": settings,
        "seed": args.seed,
    }
    prompt = args.work / "prompts" / _lib.short_key(key | {"system": "test"}, KEY)
    common = {"backbone": args.encoder, "device": args.device, "threads": args.threads}
    for count in args.labels:
        labelled = args.work / f"labels-{folder.path.name}-{args.passages}-{count}-{args.seed}"
        if count:
            write_labelled(labelled, folder, test, count=count, seed=args.seed)
        for system in ("encoder", "pretrained"):
            cell = key | {"system": f"from {system}", "labels": count}
            if _lib.key_of(cell, KEY) in {
                _lib.key_of(record, KEY) for record in _lib.read_records(args.json)
            }:
                continue
            if system == "pretrained" and not prompt.exists():
                more = {"prompt_only": True, "force": True, "seed": args.seed}
                more |= {"span_tokens": args.max_tokens, **settings}
                dptdr.pretrain(data, out=prompt, **common, **more)
            start = prompt if system == "pretrained" else None
            if count:
                out = args.work / "tuned" / _lib.short_key(cell, KEY)
                limits = {f"max_{side}_tokens": args.max_tokens for side in ("query", "passage")}
                own = {} if start is None else {"from_task": start}
                task = dptdr.train(labelled, out=out, seed=args.seed, **common, **limits, **own)
                training = task.manifest.training
                facts = {name: training[name] for name in ("max_steps", "best_step")}
                tuned = dptdr.load(out, backbone=args.encoder, device=args.device)
            else:
                facts = {}
                name = {"backbone": args.encoder} if start else {}
                tuned = dptdr.load(start or args.encoder, device=args.device, **name)
            found = searched(tuned, test, args)
            _lib.append_record(args.json, cell | measured(found, test) | facts)


def write_labelled(path: Path, folder: Any, test: Any, *, count: int, seed: int) -> None:
    """Write the test corpus with so many labelled train queries and their passages."""
    import random

    from dptdr.io.beir import write_beir

    qrels = folder.qrels("train")
    kept = sorted(qrels)
    random.Random(f"labels {seed}").shuffle(kept)
    train = {name: qrels[name] for name in kept[:count]}
    ids = {passage.id for passage in test.passages} | {p for one in train.values() for p in one}
    write_beir(
        path,
        passages=(passage for passage in folder.passages() if passage.id in ids),
        queries=(query for query in folder.queries() if query.id in train),
        qrels={"train": train},
        meta={},
    )


def cut(encoder: Any, args: argparse.Namespace) -> Any:
    """Return an encoder that reads as much of a text as the pretraining."""
    import torch

    from dptdr.model import Encoder
    from dptdr.model.encoder import Limits

    torch.set_num_threads(args.threads)
    limits = Limits(max_query_tokens=args.max_tokens, max_passage_tokens=args.max_tokens)
    return Encoder(encoder.backbone, method=encoder.method, limits=limits, name=encoder.name)


def searched(encoder: Any, dev: Any, args: argparse.Namespace) -> Any:
    from dptdr.search.retrieve import retrieve

    return retrieve(cut(encoder, args), queries=dev.queries, passages=dev.passages, depth=100)


def searched_twice(encoder: Any, dev: Any, args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the run of an encoder, and that of queries moved towards their best passages."""
    from dptdr.search.exact import exact_top_k

    encoder = cut(encoder, args)
    queries = encoder.encode_queries([query.text for query in dev.queries])
    passages = encoder.encode_passages([passage.content for passage in dev.passages])

    def ranked(vectors: Any) -> Any:
        return run_of(dev, *exact_top_k(vectors, passages, depth=100))

    _, best = exact_top_k(queries, passages, depth=3)
    return ranked(queries), ranked(queries + 0.5 * passages[best].mean(axis=1))


def run_of(dev: Any, scores: Any, rows: Any) -> Any:
    """Return the run of the best passages' scores and rows."""
    from dptdr.records import Hit

    return {
        query.id: [Hit(dev.passages[row].id, score) for score, row in zip(*found, strict=True)]
        for query, *found in zip(dev.queries, scores.tolist(), rows.tolist(), strict=True)
    }


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
    everything = _lib.read_records(args.json)
    records = [record for record in everything if "labels" not in record]
    lines = _lib.kept_words(RESULTS.with_suffix(".md"))
    lines += ["", "## Over all sets", "", *over_sets(records)]
    for key in dict.fromkeys(_lib.key_of(record, CELL) for record in records):
        own = [record for record in records if _lib.key_of(record, CELL) == key]
        bare = [record for record in own if record["system"] == "bare"]
        rows = []
        for record in own:
            name, free, seconds = named(record), "", ""
            if record["system"] == "prompt":
                before, after = record["label_free"]
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
    lines += labels_table([record for record in everything if "labels" in record])
    _lib.write_page(args.json.with_suffix(".md"), lines + _lib.origin(everything))


def labels_table(records: list[_lib.Record]) -> list[str]:
    """Return the tables of training from a pretrained prompt."""
    lines: list[str] = []
    names = ("encoder", "queries_cap", "passages_cap", "max_tokens", "settings")
    for key in dict.fromkeys(_lib.key_of(record, names) for record in records):
        mine = [record for record in records if _lib.key_of(record, names) == key]
        rows = []
        for count in sorted({record["labels"] for record in mine}):
            pairs = []
            for name in dict.fromkeys(record["set"] for record in mine):
                own, other = (
                    [
                        r
                        for r in mine
                        if (r["set"], r["labels"], r["system"]) == (name, count, f"from {start}")
                    ]
                    for start in ("pretrained", "encoder")
                )
                if own and {r["seed"] for r in own} == {r["seed"] for r in other}:
                    pairs.append((own, other))
                    means = [statistics.fmean(r[MEASURE] for r in side) for side in (own, other)]
                    values = [f"{mean:.4f}" for mean in means]
                    difference = _lib.difference(own, other)
                    rows.append([str(count), name, str(len(own)), *values, difference])
            if len(pairs) > 1:
                means = [
                    statistics.fmean(r[MEASURE] for pair in pairs for r in pair[side])
                    for side in (0, 1)
                ]
                difference, p = _lib.over_sets(pairs)
                values = [*(f"{mean:.4f}" for mean in means), f"{difference:+.4f}, p {p}"]
                rows.append([str(count), f"mean of {len(pairs)}", "", *values])
        first = mine[0]
        settings = ", ".join(f"{k} {v}" for k, v in sorted(first["settings"].items()))
        lines += [
            "",
            f"## Training on few labels, {first['encoder']} (at most {first['queries_cap']} test "
            f"queries, {first['passages_cap']:,} passages, texts of {first['max_tokens']} tokens)",
            "",
            f"Pretraining: {settings or 'the default settings'}.",
            "",
            *_lib.table(
                ["labels", "set", "seeds", "from a pretrained prompt", "from the encoder", "p"],
                rows,
            ),
        ]
    return lines


def named(record: _lib.Record) -> str:
    """Name a row."""
    if record["system"] != "prompt":
        return str(record["system"])
    more = [f"{k} {v}" for k, v in sorted(record["settings"].items())]
    return ", ".join(["prompt", *more, f"seed {record['seed']}"])


def over_sets(records: list[_lib.Record]) -> list[str]:
    """Return a table of the mean over sets of each system, against the bare encoder's."""
    bare = {_lib.key_of(r, CELL): r for r in records if r["system"] == "bare"}
    systems: dict[str, list[_lib.Record]] = {}
    for record in records:
        if record["system"] != "bare":
            systems.setdefault(named(record), []).append(record)
    rows = []
    for name, own in systems.items():
        pairs = [(record, bare[_lib.key_of(record, CELL)]) for record in own]
        means = [statistics.fmean(r[MEASURE] for r in side) for side in zip(*pairs, strict=True)]
        _, p = _lib.over_sets([([one], [other]) for one, other in pairs])
        worse = [one["set"] for one, other in pairs if _lib.below([one], [other])]
        values = [*(f"{mean:.4f}" for mean in means), f"{means[0] - means[1]:+.4f}, p {p}"]
        rows.append([name, str(len(own)), *values, ", ".join(worse) or "none"])
    return _lib.table(["system", "sets", "mean", "bare", "difference", "worse, p < .05"], rows)


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    sub.add_argument("--sets", nargs="+", required=True, help="names of data sets")
    sub.add_argument("--set", action="append", default=[], help="key=value of dptdr pretrain")
    sub.add_argument("--labels", nargs="+", type=int, default=[], help="labelled train queries")
    _lib.add_options(sub, seed=0, queries=300, passages=2500, max_tokens=80)
    _lib.add_options(sub, **_lib.MACHINE, work=_lib.temporary("prompt-only"))
    _lib.obey(parser)


if __name__ == "__main__":
    main()
