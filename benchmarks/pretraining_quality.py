"""What pretraining adds: cells in results/pretraining.jsonl.

A cell (data set, backbone, method, negatives, seed) that has its line is not run again, so the
command can be stopped and started at will; the backbones are made by
``benchmarks/pretraining_raw.py``, the negatives are files of ``dptdr mine``::

    python benchmarks/pretraining_quality.py run --sets tldr scifact --backbones mlm rip
    python benchmarks/pretraining_page.py

Methods: ``zero-shot`` (nothing is trained; for ``-prompt`` the pretrained prompt itself),
``deep-prompt``, ``full``. Negatives: ``in-batch``, or ``unified``: besides these, one a query from
the union of BM25 and a dense retriever, cleaned of false negatives. All cells read texts cut at 64
tokens. The test sets are capped and seeded; training uses the train split, the checkpoint is chosen
on dev.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _lib
from pretraining_raw import folder_of

RESULTS = _lib.RESULTS / "pretraining.jsonl"
SETS = ("tldr", "scifact", "medquad", "nq-oracle", "python-code", "python-api")
BACKBONES = ("mlm", "rip", "mlm-prompt", "more", "minilm", "minilm-rip", "minilm-prompt")
METHODS = ("zero-shot", "deep-prompt", "full")
NEGATIVES = ("in-batch", "unified")
KEY = ("part", "set", "backbone", "method", "negatives", "seed")
MEASURES = ("nDCG@10", "RR@10", "R@100")
# The raw encoder was trained for minutes: it is far from where it goes, and takes larger steps than
# the default of 1e-4, which is for encoders that were trained long.
RAW_FULL_RATE = 5e-4
# Spans of this length are what the raw encoder was trained on.
MOST_TOKENS = 64


def main() -> None:
    """Run cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "cells"])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbones", nargs="+", default=["mlm", "rip"], choices=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--negatives", nargs="+", default=["in-batch"], choices=NEGATIVES)
    parser.add_argument("--mined", type=Path, help="folder of mined SET.jsonl, for unified")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", type=Path, default=_lib.SHARED_DATA)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-raw")
    parser.add_argument("--sets-work", type=Path, help="where data sets lie unpacked; default WORK")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240, help="no cell begins after so long")
    parser.add_argument("--wrap", default="", help="run: command that each process is put behind")
    arguments = parser.parse_args()
    run(arguments) if arguments.command == "run" else cells(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run all missing cells in processes of some minutes each, one after the other."""
    for seed in arguments.seeds:
        for name in arguments.sets:
            unpacked(name, arguments)
            while missing([name], [seed], arguments):
                print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}", flush=True)
                words = [*shlex.split(arguments.wrap), sys.executable, str(Path(__file__)), "cells"]
                words += ["--sets", name, "--seeds", str(seed)]
                words += ["--backbones", *arguments.backbones, "--methods", *arguments.methods]
                words += ["--negatives", *arguments.negatives]
                if arguments.mined:
                    words += ["--mined", str(arguments.mined)]
                for option in ("data", "work", "steps", "queries", "passages", "precision"):
                    words += [f"--{option}", str(getattr(arguments, option))]
                words += ["--threads", str(arguments.threads)]
                words += ["--seconds", str(arguments.seconds)]
                if arguments.sets_work:
                    words += ["--sets-work", str(arguments.sets_work)]
                subprocess.run(words, check=True)


def missing(
    names: list[str], seeds: list[int], arguments: argparse.Namespace
) -> list[tuple[str, str, str, str, int]]:
    """Return the cells that have no line."""
    done = {_lib.key_of(record, KEY) for record in _lib.read_records(RESULTS)}
    return [
        (name, backbone, method, negatives, seed)
        for seed in seeds
        for name in names
        for negatives in arguments.negatives
        for method in arguments.methods
        for backbone in arguments.backbones
        # Nothing is drawn without training; a prompt of its own is no start for full fine-tuning.
        if not (method == "zero-shot" and (seed != 0 or negatives != "in-batch"))
        and not (method == "full" and backbone.endswith("-prompt"))
        and _lib.key_of(cell_key(name, backbone, method, negatives, seed), KEY) not in done
    ]


def cell_key(name: str, backbone: str, method: str, negatives: str, seed: int) -> _lib.Record:
    """Return what names a cell."""
    return dict(zip(KEY, ("cell", name, backbone, method, negatives, seed), strict=True))


def unpacked(name: str, arguments: argparse.Namespace) -> Path:
    """Return a data set's folder."""
    work = arguments.sets_work or arguments.work
    return _lib.data_folder(name, data=arguments.data, work=work)


def cells(arguments: argparse.Namespace) -> None:
    """Run missing cells one after the other, until the time is up."""
    import torch

    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    for wanted in missing(arguments.sets, arguments.seeds, arguments):
        if time.monotonic() - began > arguments.seconds:
            return
        cell(*wanted, arguments)


def cell(
    name: str,
    backbone: str,
    method: str,
    negatives: str,
    seed: int,
    arguments: argparse.Namespace,
) -> None:
    """Train where there is something to train, evaluate, write the cell's line."""
    from dptdr.data.subsample import capped_test
    from dptdr.evaluation import evaluate
    from dptdr.io.beir import BeirFolder

    began = time.process_time()
    folder = BeirFolder(unpacked(name, arguments))
    capped = capped_test(
        folder, test_queries=arguments.queries, passages=arguments.passages, seed=0
    )
    record: dict[str, Any] = {
        **cell_key(name, backbone, method, negatives, seed),
        "queries": len(capped.queries),
        "passages": len(capped.passages),
        "precision": arguments.precision,
        "threads": arguments.threads,
        "machine": _lib.machine(),
        "commit": _lib.commit(),
    }
    encoder = made(folder, backbone, method, negatives, seed, arguments, record=record)
    result = evaluate(
        searched(encoder, capped, precision=arguments.precision),
        capped.qrels,
        measures=MEASURES,
    )
    record["measures"] = dict(result.measures)
    record |= _lib.compact(result.per_query["nDCG@10"])
    record["processor_seconds"] = round(time.process_time() - began, 1)
    _lib.append_record(RESULTS, record)
    shown = {k: round(v, 4) for k, v in record["measures"].items()}
    print(f"{time.strftime('%H:%M:%S')} {name} {backbone} {method}", shown, flush=True)


def searched(encoder: Any, capped: Any, *, precision: str) -> Any:
    """Return the run over the capped set."""
    import torch

    from dptdr.search.retrieve import retrieve

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return retrieve(encoder, queries=capped.queries, passages=capped.passages, depth=100)


def made(
    folder: Any,
    backbone: str,
    method: str,
    negatives: str,
    seed: int,
    arguments: argparse.Namespace,
    *,
    record: dict[str, Any],
) -> Any:
    """Return the cell's encoder."""
    from dptdr.config.methods import config_from
    from dptdr.config.training import TrainingConfig
    from dptdr.model import Backbone, Encoder, load_task
    from dptdr.model.bundle import load_prompt_rows
    from dptdr.model.encoder import Limits
    from dptdr.training.train import load_data, train_task

    prompted = backbone.endswith("-prompt")
    made_for = folder_of(backbone, folder.name)
    under = backbone.removesuffix("-prompt") if prompted else made_for
    source = "minilm" if under == "minilm" else str(arguments.work / under)
    loaded = Backbone.load(source)
    rate = RAW_FULL_RATE if method == "full" and not backbone.startswith("minilm") else 0.0
    config = TrainingConfig(
        steps=arguments.steps,
        seed=seed,
        precision=arguments.precision,
        learning_rate=rate,
        max_query_tokens=MOST_TOKENS,
        max_passage_tokens=MOST_TOKENS,
        evaluations=2,
    )
    limits = Limits(max_query_tokens=MOST_TOKENS, max_passage_tokens=MOST_TOKENS)
    task = arguments.work / made_for
    if method == "zero-shot":
        tuned = load_task(task, backbone=loaded).method if prompted else None
        return Encoder(loaded, method=tuned, limits=limits)
    settings = {"initialisation": "task"} if prompted else {}
    method_name, method_config = config_from(method, settings)
    out = arguments.work / "tasks" / f"{folder.name}-{backbone}-{method}-{negatives}-{seed}"
    mined = arguments.mined / f"{folder.name}.jsonl" if negatives == "unified" else None
    result = train_task(
        load_data(folder, config, negatives=mined),
        out,
        backbone=loaded,
        method_name=method_name,
        method_config=method_config,
        config=config,
        start_rows=load_prompt_rows(task, backbone=loaded) if prompted else None,
    )
    assert result is not None
    record |= {
        "steps": arguments.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.rate_for(method_name),
        "trained_parameters": result.manifest.trained_parameters,
        "training_seconds": round(result.seconds, 1),
        "best_step": result.best_step,
        "dev": {str(step): m["nDCG@10"] for step, m in result.history.items()},
        "bare_dev": result.bare["nDCG@10"],
    }
    return load_task(out, backbone=loaded)


if __name__ == "__main__":
    main()
