"""Train and measure many small cells on one machine, several at a time, on a GPU that they share.

``python benchmarks/sweep.py PLAN.json OUT.jsonl --device cuda --workers 14 --seconds 400``

A plan is a list of cells; each gives one line of the result. A cell::

    {"set": "tldr", "system": "deep-prompt", "label": "base", "seed": 0, "steps": 150,
     "recipe": {"learning_rate": 0.1}, "settings": {"prompt_length": 16}, "extra": {},
     "measure": "dev"}

``measure`` is ``dev``, ``test`` (all test queries over all passages, unless ``--queries`` and
``--passages`` cap them) or ``elsewhere`` (``test``, and the capped test set of every other set).
``extra`` is read by ``benchmarks/variants.py``. Cells of one set share what is read and tokenised.
No cell begins after ``--seconds``; what was not begun is named at the end. Several cells share the
device, so that seconds are no measure of a method's cost.
"""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import quality

MEASURES = ("nDCG@10", "RR@10", "R@100")
DEV = {"dev_queries": 300, "dev_passages": 1000}
ELSEWHERE = (200, 1000)


def main() -> None:
    """Run a plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="where data sets lie unpacked")
    parser.add_argument("--negatives", type=Path, help="folder of mined SET.jsonl")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--only-tokens", action="store_true", help="tokenise for later calls")
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--passages", type=int, default=10_000_000)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    torch.set_num_threads(1)
    began = time.monotonic()
    cells = json.loads(arguments.plan.read_text(encoding="utf-8"))
    tested = {n for c in cells if c.get("measure", "dev") != "dev" for n in sets_of(c)}
    if tested:
        tokenise_all(sorted(tested), arguments)
    if arguments.only_tokens:
        return
    print(f"{time.monotonic() - began:.0f} s: {len(cells)} cells", flush=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    share_out(cells, arguments, began=began)


def sets_of(cell: dict[str, Any]) -> list[str]:
    """Return the sets that a cell needs."""
    extra = cell.get("extra", {})
    return [cell["set"], *cell.get("others", []), *filter(None, [extra.get("rows_from")])]


def share_out(cells: list[dict[str, Any]], arguments: argparse.Namespace, *, began: float) -> None:
    """Let workers take cells in the plan's order, and write results as they come."""
    # A forked process could not use a device that something it imports has looked at before.
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    taken = context.Value("i", 0)
    workers = [
        context.Process(target=work, args=(cells, arguments, began, taken, answers))
        for _ in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    machine = {"machine": quality.machine(), "commit": quality.commit()}
    done = failed = alive = 0
    with arguments.out.open("w", encoding="utf-8") as out:
        while alive < len(workers):
            answer = answers.get()
            if answer is None:
                alive += 1
                continue
            failed += "error" in answer
            done += 1
            out.write(json.dumps({**answer, **machine}) + "\n")
            out.flush()
            if "error" in answer:
                print(f"{answer['set']} {answer['label']}: {answer['error']}", flush=True)
            if done % 20 == 0:
                print(f"{time.monotonic() - began:.0f} s: {done} cells", flush=True)
    for worker in workers:
        worker.join()
    left = len(cells) - taken.value if taken.value < len(cells) else 0
    print(f"{time.monotonic() - began:.0f} s: {done} cells, {failed} failed, {left} not begun")


def work(
    cells: list[dict[str, Any]],
    arguments: argparse.Namespace,
    began: float,
    taken: Any,
    answers: Any,
) -> None:
    """Take one cell after the other."""
    torch.set_num_threads(1)
    try:
        store = Store(arguments, began=began)
        while time.monotonic() - began < arguments.seconds:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(cells):
                break
            cell = cells[number]
            try:
                answers.put(run_cell(cell, store, arguments))
            except Exception as error:  # one cell's failure is that cell's result
                where = traceback.format_exc(limit=-3)
                answers.put({**cell, "error": f"{type(error).__name__}: {error}", "where": where})
            if arguments.device != "cpu":
                torch.cuda.empty_cache()
    finally:
        answers.put(None)


def tokenise_all(names: list[str], arguments: argparse.Namespace) -> None:
    """Write the token ids of all texts of some sets, as tests read them, for all workers."""
    from dptdr.io.beir import BeirFolder
    from dptdr.model import Backbone

    backbone = Backbone.load(arguments.backbone)
    for name in names:
        folder = BeirFolder(arguments.data / name)
        texts = {"query": [q.text for q in folder.queries()]}
        texts["passage"] = [p.content for p in folder.passages()]
        for side, some in texts.items():
            path = token_file(name, side, arguments)
            if path.exists():
                continue
            rows = backbone.tokenize(some, side=side)  # type: ignore[arg-type]
            ends = np.cumsum([len(row) for row in rows])
            flat = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=ends[-1])
            part = path.with_name(f"part-{path.name}")
            np.savez(part, ends=ends, flat=flat)
            part.replace(path)


def token_file(name: str, side: str, arguments: argparse.Namespace) -> Path:
    """Return where a set's token ids lie."""
    made: Path = arguments.data / f"{name}-{side}-{Path(arguments.backbone).name}.npz"
    return made


class Store:
    """One worker's encoder, data sets and tokenised texts."""

    def __init__(self, arguments: argparse.Namespace, *, began: float) -> None:
        from dptdr.model import Backbone

        self.arguments = arguments
        self.began = began
        self.backbone: Any = Backbone.load(arguments.backbone)
        self.backbone.model.to(arguments.device)
        self.backbone.model.requires_grad_(requires_grad=False)
        self.loaded: dict[Any, Any] = {}
        self._tests: dict[str, Any] = {}
        self._elsewhere: dict[str, Any] = {}
        self._tokenise: Callable[..., list[list[int]]] = self.backbone.tokenize
        self._known: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self.backbone.tokenize = self.tokenise

    def folder(self, name: str) -> Any:
        """Return a data set."""
        from dptdr.io.beir import BeirFolder

        return BeirFolder(self.arguments.data / name)

    def test(self, name: str) -> Any:
        """Return a test set; its token ids are read with it."""
        from dptdr.data.subsample import capped_test

        if name not in self._tests:
            folder = self.folder(name)
            sizes = {"test_queries": self.arguments.queries, "passages": self.arguments.passages}
            self._tests[name] = capped_test(folder, seed=0, **sizes)
            texts = {"query": [q.text for q in folder.queries()]}
            texts["passage"] = [p.content for p in folder.passages()]
            longest = self.backbone.pooling.max_tokens
            for side, some in texts.items():
                with np.load(token_file(name, side, self.arguments)) as held:
                    rows = np.split(held["flat"], held["ends"][:-1])
                known = self._known.setdefault((side, longest), {})
                known.update(zip(some, rows, strict=True))
        return self._tests[name]

    def elsewhere(self, name: str) -> Any:
        """Return a small test set, to see what another task has lost on it."""
        from dptdr.data.subsample import capped_test

        if name not in self._elsewhere:
            queries, passages = ELSEWHERE
            self._elsewhere[name] = capped_test(
                self.folder(name), test_queries=queries, passages=passages, seed=0
            )
        return self._elsewhere[name]

    def tokenise(
        self, texts: Sequence[str], *, side: str, max_tokens: int | None = None
    ) -> list[list[int]]:
        """Return token ids, from memory where a text was seen before."""
        longest = self.backbone.pooling.max_tokens
        known = self._known.setdefault((side, min(max_tokens or longest, longest)), {})
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            rows = self._tokenise(new, side=side, max_tokens=max_tokens)
            known.update(
                (text, np.asarray(row, dtype=np.int32)) for text, row in zip(new, rows, strict=True)
            )
        return [known[text].tolist() for text in texts]

    def data(self, name: str, config: Any, *, mined: bool) -> Any:
        """Return what a run of these settings trains on and selects by."""
        from dptdr.training.train import load_data

        key = (name, config.seed, mined, config.dev_queries, config.dev_passages)
        if key not in self.loaded:
            path = self.arguments.negatives / f"{name}.jsonl" if mined else None
            self.loaded[key] = load_data(
                self.folder(name), config, negatives=path, min_grade=least_grade(name)
            )
        return self.loaded[key]


def least_grade(name: str) -> int:
    """Return the least grade of a positive: TREC counts grades of 2 and 3 as relevant."""
    return 2 if name == "msmarco-dl" else 1


def run_cell(cell: dict[str, Any], store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one cell and measure it."""
    from dptdr.config.training import TrainingConfig
    from dptdr.model import Encoder

    started = time.monotonic()
    extra = cell.get("extra", {})
    steps = cell.get("steps", 150)
    config = TrainingConfig(
        **{
            **DEV,
            "steps": steps,
            "seed": cell["seed"],
            "precision": arguments.precision,
            **cell.get("recipe", {}),
        }
    )
    data = store.data(cell["set"], config, mined=bool(extra.get("mined")))
    record = dict(cell)
    if cell["system"] == "bm25":
        return record | lexical(store.test(cell["set"]))
    if cell["system"] == "bare":
        encoder = Encoder(store.backbone)
        record["dev"] = {"0": dev_of(encoder, data, config, arguments)}
    else:
        rows = None
        if extra.get("rows_from"):
            other = {**cell, "set": extra["rows_from"], "extra": {}}
            rows = trained(other, store, arguments, config, {}).method.state()
        encoder = trained(cell, store, arguments, config, record, rows=rows)
    if cell.get("measure", "dev") != "dev":
        record |= measured(encoder, store.test(cell["set"]), arguments, queries=True)
        record["elsewhere"] = {
            name: measured(encoder, store.elsewhere(name), arguments)["measures"]["nDCG@10"]
            for name in cell.get("others", [])
        }
    record["wall_seconds"] = round(time.monotonic() - started, 2)
    record["at"] = round(time.monotonic() - store.began, 1)
    return record


def trained(
    cell: dict[str, Any],
    store: Store,
    arguments: argparse.Namespace,
    config: Any,
    record: dict[str, Any],
    *,
    rows: Any = None,
) -> Any:
    """Return the encoder of the checkpoint that is best on dev."""
    import variants
    from dptdr.model import Encoder
    from dptdr.training.loop import Trainable, evaluation_steps, run_identity
    from dptdr.training.selection import training_limits
    from dptdr.training.train import set_training_mode

    extra = cell.get("extra", {})
    data = store.data(cell["set"], config, mined=bool(extra.get("mined")))
    backbone = store.backbone
    teacher = None
    if extra.get("teacher"):
        taught = {**cell, "extra": {}, "settings": {}, **extra["teacher"]}
        limits = training_limits(backbone, run_identity(config))
        from dataclasses import replace

        own = replace(config, **extra["teacher"].get("recipe", {}))
        found = trained(taught, store, arguments, own, {})
        full = Encoder(found.backbone, method=found.method, limits=limits)
        with autocast(arguments):
            teacher = variants.teacher_vectors(full, data.groups)
    method = variants.build(
        backbone,
        data,
        cell["system"],
        cell.get("settings", {}),
        seed=config.seed,
        extra={**extra, "rows": rows},
    )
    method.backbone.tokenize = store.tokenise
    rate = config.learning_rate or config.rate_for(
        "deep-prompt" if cell["system"] == "peft-prefix" else cell["system"]
    )
    parameters = dict(method.trained())
    learned = None
    if extra.get("learned_temperature"):
        learned = torch.nn.Parameter(torch.zeros((), device=backbone.device))
        parameters["temperature"] = learned
    objective = variants.TaughtObjective(
        method,
        data.groups,
        config,
        score_scale=1.0,
        teacher=teacher,
        teacher_weight=extra.get("teacher_weight", 0.5),
        learned=learned,
    )
    trainable = Trainable(parameters, config, rate=rate)
    variants.change_trainable(trainable, extra=extra, rate=rate)
    update: Any = trainable.update
    if extra.get("layer_rates"):
        update = variants.layer_scaled(update, trainable.parameters, extra=extra)
    set_training_mode(method)
    due = evaluation_steps(config)
    best, kept, history, losses, seconds = -1.0, None, {}, [], 0.0

    def consider(step: int) -> None:
        nonlocal best, kept
        method.module.eval()
        encoder = Encoder(backbone, method=method, limits=limits_of(backbone, config))
        history[step] = dev_of(encoder, data, config, arguments)
        set_training_mode(method)
        if history[step] > best:
            best = history[step]
            kept = {name: p.detach().clone() for name, p in method.trained().items()}

    if extra.get("start_counts"):
        consider(0)
    for step in range(config.steps):
        began = time.monotonic()
        trainable.forget_gradients()
        losses.append(objective.backward(step).loss)
        trainable.clip()
        update(step)
        seconds += time.monotonic() - began
        if step + 1 in due:
            consider(step + 1)
    with torch.no_grad():
        for name, parameter in method.trained().items():
            parameter.copy_(kept[name])
    method.module.eval()
    record |= {
        "learning_rate": rate,
        "batch_size": config.batch_size,
        "trained_parameters": sum(p.numel() for p in method.trained().values()),
        "dev": {str(step): round(value, 5) for step, value in history.items()},
        "best_step": max(history, key=lambda step: (history[step], -step)),
        "loss": round(sum(losses[-10:]) / len(losses[-10:]), 4),
        "training_seconds": round(seconds, 2),
    }
    return Encoder(backbone, method=method)


def limits_of(backbone: Any, config: Any) -> Any:
    """Return how long texts may be on dev: as in training."""
    from dptdr.training.loop import run_identity
    from dptdr.training.selection import training_limits

    return training_limits(backbone, run_identity(config))


def autocast(arguments: argparse.Namespace) -> Any:
    """Return the context of the precision asked for."""
    kind = arguments.device.split(":")[0]
    enabled = arguments.precision == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)


def dev_of(encoder: Any, data: Any, config: Any, arguments: argparse.Namespace) -> float:
    """Return the measure that selects checkpoints."""
    from dptdr.training.selection import dev_measures

    with autocast(arguments):
        return dev_measures(encoder, data.dev, measure=config.dev_measure)[config.dev_measure]


def lexical(test: Any) -> dict[str, Any]:
    """Return BM25's measures over a test set."""
    from dptdr.search.bm25 import Bm25Index

    run = Bm25Index.build(test.passages).search(test.queries, depth=100)
    return evaluated(run, test, queries=True)


def measured(
    encoder: Any, test: Any, arguments: argparse.Namespace, *, queries: bool = False
) -> dict[str, Any]:
    """Return measures over a test set, of each query where asked for."""
    from dptdr.search.retrieve import retrieve

    with autocast(arguments):
        run = retrieve(encoder, queries=test.queries, passages=test.passages, depth=100)
    return evaluated(run, test, queries=queries)


def evaluated(run: Any, test: Any, *, queries: bool) -> dict[str, Any]:
    """Return a run's measures, of each query where asked for."""
    from dptdr.evaluation import evaluate

    result = evaluate(run, test.qrels, measures=MEASURES if queries else ("nDCG@10",))
    record: dict[str, Any] = {
        "queries": len(test.queries),
        "passages": len(test.passages),
        "measures": {name: round(float(v), 5) for name, v in result.measures.items()},
    }
    if queries:
        per_query = result.per_query["nDCG@10"]
        record["per_query"] = {q: round(v, 4) for q, v in sorted(per_query.items())}
    return record


if __name__ == "__main__":
    main()
