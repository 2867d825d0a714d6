"""What mined negatives add: results/negatives.jsonl, then its page.

Each cell (data set, condition, seed) is one process and one line; a cell that has its line is not
run again, so the command can be stopped and started at will::

    python benchmarks/negatives.py run --sets tldr scifact --seeds 0
    python benchmarks/negatives.py table

All conditions train the same queries from the same start for the same steps; they differ in the
mined negatives alone. The prompt is query-only: passages keep the bare backbone's vectors, which
are made once per data set, so that mining, training and evaluation cost queries alone and a cell
takes a minute of one core. ``--sharing tied`` trains queries and passages as the default recipe
does, at several times the cost.
"""

import argparse
import contextlib
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import _lib

RESULTS = _lib.RESULTS / "negatives.jsonl"
SETS = ("tldr", "scifact", "msmarco-dl", "nq-oracle", "medquad")
RUNNABLE = ("none", "bm25", "own", "union", "cleaned", "two-rounds")
CONDITIONS = (*RUNNABLE, "refreshed")
RANKS = "ranks=1-100,quota=30,sampling=uniform"
PERCENT = 95.0
MEASURES = ("nDCG@10", "RR@10", "R@100")
# Words that are left of a title and text: about as many tokens as training reads.
WORDS = 64
TRAIN_QUERIES = 3_200
TEST_QUERIES = 500
PASSAGES = 15_000


def main() -> None:
    """Run cells, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "prepare", "cell"):
        sub = commands.add_parser(name)
        sub.add_argument("--sets", nargs="+", default=list(SETS))
        sub.add_argument("--conditions", nargs="+", choices=RUNNABLE, default=list(RUNNABLE))
        sub.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        sub.add_argument("--data", type=Path, default=_lib.SHARED_DATA)
        sub.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-quality")
        sub.add_argument("--steps", type=int, default=100)
        sub.add_argument("--batch", type=int, default=32)
        sub.add_argument("--sharing", default="query-only", choices=["query-only", "tied"])
        sub.add_argument("--seconds", type=float, default=200, help="no cell begins after so long")
        sub.add_argument("--budget", type=float, default=0, help="run: the same; 0: no end")
        sub.add_argument("--wrap", default="", help="run: command that each process is put behind")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
    else:
        {"run": run, "prepare": prepare, "cell": cell}[arguments.command](arguments)


def run(arguments: argparse.Namespace) -> None:
    """Prepare data sets and run all missing cells, one after the other, while time is left."""
    ends = time.monotonic() + (arguments.budget or float("inf"))
    for seed in arguments.seeds:
        for name in arguments.sets:
            wanted = [
                condition
                for condition in arguments.conditions
                if not done(name, condition, seed, arguments)
            ]
            if not wanted or time.monotonic() > ends:
                continue
            if not base(name, arguments).is_dir():
                call("prepare", arguments, name=name)
            while wanted and time.monotonic() < ends:
                arguments.seconds = min(arguments.seconds, ends - time.monotonic())
                call("cell", arguments, name=name, conditions=wanted, seed=seed)
                wanted = [c for c in wanted if not done(name, c, seed, arguments)]
                table()


def call(
    command: str,
    arguments: argparse.Namespace,
    *,
    name: str,
    conditions: Sequence[str] = RUNNABLE,
    seed: int = 0,
) -> None:
    print(f"{time.strftime('%H:%M:%S')} {command} {name}, seed {seed}", flush=True)
    words = [*shlex.split(arguments.wrap), sys.executable, str(Path(__file__)), command]
    words += ["--sets", name, "--conditions", *conditions, "--seeds", str(seed)]
    for option in ("data", "work", "steps", "batch", "sharing", "seconds"):
        words += [f"--{option}", str(getattr(arguments, option))]
    subprocess.run(words, check=True)


def done(name: str, condition: str, seed: int, arguments: argparse.Namespace) -> bool:
    """Whether a cell has its line."""
    cell = {"set": name, "condition": condition, "sharing": arguments.sharing, "seed": seed}
    return any(cell.items() <= record.items() for record in _lib.read_records(RESULTS))


def base(name: str, arguments: argparse.Namespace) -> Path:
    """Return where a set's capped copy, its vectors and its mined files lie."""
    folder: Path = arguments.work / "negatives" / name
    return folder


def min_grade(name: str) -> int:
    """Return the least grade of a positive: TREC counts grades of 2 and 3 as relevant."""
    return 2 if name == "msmarco-dl" else 1


# --- preparation -------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> None:
    """Cap a set, encode its passages once, and measure the bare backbone and BM25."""
    from dptdr.search.bm25 import Bm25Index

    name = arguments.sets[0]
    folder = capped(name, arguments)
    task = opened(folder, name, arguments)
    bare = task.measured(task.encoder)
    run = Bm25Index.build(task.passages).search(task.test_queries, depth=100)
    for system, result in (("bare", bare), ("bm25-search", task.judged(run))):
        record = {**task.facts(), "system": system, **result}
        _lib.put_records(RESULTS, [record], ("set", "system"))


def capped(name: str, arguments: argparse.Namespace) -> Any:
    """Return the set with fewer queries and passages and with shorter texts, made once."""
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.records import Passage

    out = base(name, arguments) / name
    if out.is_dir():
        return BeirFolder(out)
    source = BeirFolder(_lib.data_folder(name, data=arguments.data, work=arguments.work))
    draw = random.Random(f"negatives {name}")
    qrels = {}
    for split, most in (("train", TRAIN_QUERIES), ("test", TEST_QUERIES)):
        judged = source.qrels(split)
        ids = sorted(q for q in judged if max(judged[q].values()) >= min_grade(name))
        chosen = draw.sample(ids, min(most, len(ids)))
        qrels[split] = {query: judged[query] for query in sorted(chosen)}
    needed = {p for judged in qrels.values() for grades in judged.values() for p in grades}
    everything = [passage.id for passage in source.passages()]
    others = [passage for passage in everything if passage not in needed]
    kept = needed | set(draw.sample(others, max(0, min(len(others), PASSAGES - len(needed)))))

    def _cut() -> Iterator[Passage]:
        for passage in source.passages():
            if passage.id in kept:
                room = WORDS - len(passage.title.split())
                yield passage._replace(text=" ".join(passage.text.split()[: max(room, 16)]))

    queries = {query for judged in qrels.values() for query in judged}
    write_beir(
        out,
        passages=_cut(),
        queries=(query for query in source.queries() if query.id in queries),
        qrels=qrels,
        meta={"name": name},
    )
    return BeirFolder(out)


@dataclass(kw_only=True)
class OpenSet:
    """A capped set with the bare backbone's vectors of its passages."""

    name: str
    arguments: argparse.Namespace
    folder: Any
    backbone: Any
    encoder: Any
    stored: Path
    vectors: np.ndarray
    passages: list[Any]
    test_queries: list[Any]

    def measured(self, encoder: Any) -> dict[str, Any]:
        """Search the test queries among all passages."""
        run = searched(encoder, self.test_queries, self.passage_vectors(encoder), self.passages)
        return self.judged(run)

    def passage_vectors(self, encoder: Any) -> np.ndarray:
        """Return an encoder's passage vectors; the bare backbone's are at hand."""
        if encoder.method is None or not encoder.method.changes("passage"):
            return self.vectors
        with autocast():
            made: np.ndarray = encoder.encode_passages([p.content for p in self.passages])
        return made

    def judged(self, run: Any) -> dict[str, Any]:
        """Return measures, and nDCG@10 of each query."""
        from dptdr.evaluation import evaluate

        result = evaluate(run, self.folder.qrels("test"), measures=MEASURES)
        return {"measures": dict(result.measures), **_lib.compact(result.per_query["nDCG@10"])}

    def facts(self) -> dict[str, Any]:
        """Return what stands in every cell."""
        return {
            "set": self.name,
            "passages": len(self.passages),
            "queries": len(self.test_queries),
            "train_queries": len(self.folder.qrels("train")),
            "commit": _lib.commit(),
            "machine": _lib.machine(),
        }


def opened(folder: Any, name: str, arguments: argparse.Namespace) -> OpenSet:
    """Load the backbone and the passages' vectors, which are made here the first time."""
    import torch

    from dptdr.model import Backbone, Encoder

    torch.set_num_threads(1)
    backbone = Backbone.load("minilm")
    encoder = Encoder(backbone)
    shop = workshop(folder, name, arguments)
    with autocast():
        stored = shop.vectors(encoder)
    test = set(folder.qrels("test"))
    return OpenSet(
        name=name,
        arguments=arguments,
        folder=folder,
        backbone=backbone,
        encoder=encoder,
        stored=stored.path.resolve(),
        vectors=np.concatenate([np.asarray(block) for _, block in stored.blocks()]),
        passages=list(folder.passages()),
        test_queries=[query for query in folder.queries() if query.id in test],
    )


def workshop(folder: Any, name: str, arguments: argparse.Namespace) -> Any:
    from dptdr.mining.sources import Machine, open_workshop

    return open_workshop(
        folder,
        split="train",
        work=base(name, arguments) / "work",
        cache=base(name, arguments) / "cache",
        machine=Machine(),
        show=lambda what: contextlib.nullcontext(lambda done, total: None),
    )


def autocast() -> Any:
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16)


def searched(encoder: Any, queries: list[Any], vectors: np.ndarray, passages: list[Any]) -> Any:
    """Return the best hundred passages of each query."""
    from dptdr.records import Hit
    from dptdr.search.indexes.exact import exact_top_k

    with autocast():
        encoded = encoder.encode_queries([query.text for query in queries])
    scores, rows = exact_top_k(encoded, vectors, depth=100)
    return {
        query.id: [
            Hit(passages[row].id, score)
            for row, score in zip(rows[at].tolist(), scores[at].tolist(), strict=True)
        ]
        for at, query in enumerate(queries)
    }


# --- cells -------------------------------------------------------------------------------------


def cell(arguments: argparse.Namespace) -> None:
    """Mine, train and evaluate conditions of one set and seed, as many as the time allows."""
    name, seed = arguments.sets[0], arguments.seeds[0]
    began = time.monotonic()
    task = opened(capped(name, arguments), name, arguments)
    for number, condition in enumerate(arguments.conditions):
        if number == 0 or time.monotonic() - began < arguments.seconds:
            one_cell(task, condition, seed=seed)


def one_cell(task: OpenSet, condition: str, *, seed: int) -> None:
    """Mine, train and evaluate."""
    from dptdr.model import Encoder

    name, arguments = task.name, task.arguments
    began = time.monotonic()
    record: dict[str, Any] = {
        **task.facts(),
        "condition": condition,
        "seed": seed,
        "steps": arguments.steps,
        "batch_size": arguments.batch,
        "sharing": arguments.sharing,
    }
    method = trained(task, condition, seed=seed, record=record)
    record |= task.measured(Encoder(task.backbone, method=method))
    record["wall_seconds"] = time.monotonic() - began
    _lib.append_record(RESULTS, record)
    shown = {measure: round(value, 4) for measure, value in record["measures"].items()}
    print(name, condition, seed, shown, f"{record['wall_seconds']:.0f} s", flush=True)


def trained(task: OpenSet, condition: str, *, seed: int, record: dict[str, Any]) -> Any:
    """Return the tuned method of a condition."""
    steps = task.arguments.steps
    if condition == "none":
        return train(task, None, steps=steps, seed=seed, record=record)
    if condition in ("bm25", "own", "union", "cleaned"):
        negatives = mined(task, condition, record=record)
        return train(task, negatives, steps=steps, seed=seed, record=record)
    # Both begin with the cleaned union and go on with negatives of the retriever of half-time.
    negatives = mined(task, "cleaned", record=record)
    first = train(task, negatives, steps=steps // 2, seed=seed, record=record)
    again = mined(task, "second-round", record=record, seed=seed, method=first)
    return train(task, again, steps=steps - steps // 2, seed=seed, record=record, start=first)


def mined(
    task: OpenSet, kind: str, *, record: dict[str, Any], seed: int = 0, method: Any = None
) -> Path:
    """Return the mined file of a kind, made once per set (each second round has its own)."""
    from dptdr.io.atomic import read_json, write_json
    from dptdr.mining.folder import MineRequest, mine_folder
    from dptdr.mining.settings import CleaningSettings, MiningSettings, parse_source
    from dptdr.model import Encoder, save_task

    root = base(task.name, task.arguments) / "mined"
    out = root / f"{kind}-{task.arguments.sharing}-{seed}.jsonl" if method else root / kind
    own = "backbone:minilm"
    if method is not None:
        folder = root / f"round-one-{task.arguments.sharing}-{seed}"
        save_task(folder, Encoder(task.backbone, method=method), name=folder.name, training={})
        own = f"task:{folder}"
        out.unlink(missing_ok=True)
    sources = {"bm25": ["bm25"], "own": [own]}.get(kind, ["bm25", own])
    cleaned = kind in ("cleaned", "second-round")
    facts = out.with_name(out.name + ".json")
    if not out.is_file():
        request = MineRequest(
            data=task.folder.path,
            out=out,
            settings=MiningSettings(
                sources=tuple(
                    parse_source(f"{source},{RANKS},name={'bm25' if source == 'bm25' else 'own'}",
                                 depth=100, quota=30)
                    for source in sources
                ),
                cleaning=CleaningSettings(percent=PERCENT if cleaned else None),
                min_grade=min_grade(task.name),
            ),
            teacher=own if cleaned else None,
            cache=base(task.name, task.arguments) / "cache",
        )  # fmt: skip
        began = time.monotonic()
        with autocast():
            report = mine_folder(
                request, show=lambda what: contextlib.nullcontext(lambda done, total: None)
            )
        kept = ("queries", "queries_without_negative", "negatives", "dropped", "overlap")
        found = {key: report[key] for key in kept} | {"seconds": time.monotonic() - began}
        found["above_positive"] = report["hardness"]["above_positive"]
        write_json(facts, found)
    record.setdefault("mining", []).append({"kind": kind, **read_json(facts)})
    return out


def train(
    task: OpenSet,
    negatives: Path | None,
    *,
    steps: int,
    seed: int,
    record: dict[str, Any],
    start: Any = None,
) -> Any:
    """Train for some steps and return the method as it is after the last."""
    from dptdr.config.methods import config_from
    from dptdr.config.training import TrainingConfig
    from dptdr.evaluation import evaluate
    from dptdr.model import Encoder, MethodFactory
    from dptdr.training.checkpoints import RunFolder
    from dptdr.training.distributed import World
    from dptdr.training.loop import Trainable, run_identity, train_loop
    from dptdr.training.preparation import load_data
    from dptdr.training.train import set_training_mode

    config = TrainingConfig(
        steps=steps,
        batch_size=task.arguments.batch,
        seed=seed,
        precision="bfloat16",
        evaluations=1,
        dev_queries=100,
        score_scale=1.0,
    )
    data = load_data(task.folder, config, negatives=negatives, min_grade=min_grade(task.name))
    factory = MethodFactory(
        query_texts=data.query_texts,
        passage_texts=data.passage_texts,
        rows=None if start is None else start.state(),
    )
    name, settings = config_from("deep-prompt", {"sharing": task.arguments.sharing})
    method = factory.build(name, task.backbone, settings, seed=seed)

    def dev() -> dict[str, float]:
        encoder = Encoder(task.backbone, method=method)
        vectors = task.passage_vectors(encoder)
        run = searched(encoder, data.dev.queries, vectors, task.passages)
        return dict(evaluate(run, data.dev.qrels, measures=["nDCG@10"]).measures)

    place = base(task.name, task.arguments) / "training" / f"{os.getpid()}"
    set_training_mode(method)
    began = time.monotonic()
    history = train_loop(
        objective_of(task, method, data.groups, config),
        Trainable(method.trained(), config, rate=config.rate_for(name)),
        state=method.state,
        evaluate=dev,
        folder=RunFolder(place),
        identity=run_identity(config, learning_rate=config.rate_for(name)),
        world=World(),
    )
    shutil.rmtree(place, ignore_errors=True)
    method.module.eval()
    record.setdefault("training_seconds", []).append(time.monotonic() - began)
    record.setdefault("dev", []).append(history[steps]["nDCG@10"])
    record["learning_rate"] = config.rate_for(name)
    record["trained_groups"] = len(data.groups)
    return method


def objective_of(task: OpenSet, method: Any, groups: Any, config: Any) -> Any:
    """Return the contrastive objective; passages that are not trained take their stored vectors."""
    import torch

    from dptdr.training.objective import ContrastiveObjective

    if method.changes("passage"):
        return ContrastiveObjective(method, groups, config)
    backbone = task.backbone
    contents = [passage.content for passage in task.passages]
    tokens = backbone.tokenize(contents, side="passage", max_tokens=config.max_passage_tokens)
    places = {tuple(row): place for place, row in enumerate(tokens)}

    class StoredPassages(ContrastiveObjective):
        """Looks passages up instead of encoding them again in each step."""

        def _encode(self, piece: Any) -> Any:
            if piece.side == "query":
                return super()._encode(piece)
            rows = [places[tuple(row)] for row in piece.rows]
            return torch.from_numpy(np.array(task.vectors[rows], dtype=np.float32))

    return StoredPassages(method, groups, config)


# --- table -------------------------------------------------------------------------------------


def table() -> None:
    """Write results/negatives.md from all cells."""
    cells = _lib.read_records(RESULTS)
    lines = [*HEAD, "", *overall_lines(cells)]
    for sharing in ("query-only", "tied"):
        for name in SETS:
            own = [c for c in cells if c["set"] == name and c.get("sharing") == sharing]
            if own:
                systems = [c for c in cells if c["set"] == name and "system" in c]
                lines += ["", *set_lines(name, sharing, own, systems)]
    lines += ["", *mining_lines(cells), *_lib.origin(cells)]
    _lib.write_page(RESULTS.with_suffix(".md"), lines)


HEAD = [
    "# What mined negatives add",
    "",
    "Made by `python benchmarks/negatives.py run` (cells in `negatives.jsonl`), which can be "
    "stopped and goes on. All conditions of a set train the same queries from the same start with "
    "the same steps, batch (32) and learning rate, bfloat16, one mined negative a query and step, "
    "last checkpoint; they differ in the negatives alone. Encoder: MiniLM (`minilm`). Sets are "
    f"capped: at most {TRAIN_QUERIES:,} train and {TEST_QUERIES} test queries, {PASSAGES:,} "
    f"passages, {WORDS} words each; test queries are searched among all of them. p: paired "
    "randomisation test of per-query nDCG@10 (mean over seeds) against no mined negatives.",
    "",
    "- none: the batch's other passages only",
    "- bm25, own: 30 drawn from ranks 1-100 of BM25, of the untuned retriever",
    "- union: both",
    f"- cleaned: the union without candidates that score above {PERCENT:.0f} % of the positive, by "
    "the untuned retriever",
    "- two-rounds: half the steps on cleaned; the tuned retriever mines and cleans anew (with "
    "BM25); the other half from its prompt",
    "- refreshed: cleaned; at half-time the run goes on with what its checkpoint finds, cleaned "
    "by itself (measured before `--refresh-every` was removed)",
]  # fmt: skip


def set_lines(
    name: str, sharing: str, cells: list[dict[str, Any]], systems: list[dict[str, Any]]
) -> list[str]:
    first = cells[0]
    lines = [
        f"## {name}, {sharing} ({first['queries']} test queries, {first['passages']:,} passages, "
        f"{first['train_queries']:,} train queries)",
        "",
        "| condition | nDCG@10 | RR@10 | R@100 | seeds | difference to none, p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for system in systems:
        values = [f"{system['measures'][measure]:.4f}" for measure in MEASURES]
        lines.append(f"| ({system['system']}) | {' | '.join(values)} | | |")
    by_condition = {
        condition: [cell for cell in cells if cell["condition"] == condition]
        for condition in CONDITIONS
    }
    for condition, own in by_condition.items():
        if not own:
            continue
        # Only seeds that both conditions have are compared.
        seeds = {cell["seed"] for cell in own} & {cell["seed"] for cell in by_condition["none"]}
        shown = ""
        if condition != "none" and seeds:
            mine = [cell for cell in own if cell["seed"] in seeds]
            none = [cell for cell in by_condition["none"] if cell["seed"] in seeds]
            shown = _lib.difference(mine, none)
        values = [_lib.spread([cell["measures"][measure] for cell in own]) for measure in MEASURES]
        lines.append(f"| {condition} | {' | '.join(values)} | {len(own)} | {shown} |")
    return lines


def overall_lines(cells: list[dict[str, Any]]) -> list[str]:
    """Compare each condition with no mined negatives and with the union, over all sets."""

    def of(name: str, condition: str) -> dict[int, dict[str, Any]]:
        chosen = [c for c in cells if c["set"] == name and c.get("condition") == condition]
        return {c["seed"]: c for c in chosen if c["sharing"] == "query-only"}

    lines = [
        "## Over all sets",
        "",
        "Differences of nDCG@10 (mean over the seeds that both have), their mean over the sets, "
        "each with the same weight, and the randomisation test of that mean over all queries.",
        "",
        f"| condition | against | {' | '.join(SETS)} | mean | p |",
        "| --- | --- |" + " --- |" * (len(SETS) + 2),
    ]
    for reference in ("none", "union"):
        for condition in CONDITIONS:
            if condition == reference or (reference == "union" and condition == "none"):
                continue
            means, weighted = [], []
            for name in SETS:
                one, other = of(name, condition), of(name, reference)
                seeds = sorted(one.keys() & other.keys())
                if not seeds:
                    means.append(None)
                    continue
                mine, base = (
                    np.array(_lib.mean_per_query([x[seed] for seed in seeds])) for x in (one, other)
                )
                apart = mine - base
                means.append(float(apart.mean()))
                weighted.append(apart / apart.size)
            known = [mean for mean in means if mean is not None]
            if not known:
                continue
            p = _lib.weighted_p(np.concatenate(weighted) / len(known))
            shown = " | ".join("" if mean is None else f"{mean:+.4f}" for mean in means)
            lines.append(
                f"| {condition} | {reference} | {shown} | {statistics.fmean(known):+.4f} "
                f"({len(known)} sets) | {_lib.p_text(p)} |"
            )
    return lines


def mining_lines(cells: list[dict[str, Any]]) -> list[str]:
    """Tell what was mined: how many, how hard, how many dropped."""
    lines = [
        "## Mined",
        "",
        "Share above: negatives that a source ranks above the query's best positive.",
        "",
        "| set | kind | negatives a query | queries without | dropped | share above | seconds |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in (e for e in cells if e.get("sharing") == "query-only"):
        for found in entry.get("mining", []):
            seen.setdefault((entry["set"], found["kind"]), found)
    for name in SETS:
        for kind in ("bm25", "own", "union", "cleaned", "second-round"):
            found = seen.get((name, kind))
            if found is None:
                continue
            above = ", ".join(
                f"{source} {share:.0%}"
                for source, share in found["above_positive"].items()
                if share is not None
            )
            dropped = sum(counts["total"] for counts in found["dropped"].values())
            lines.append(
                f"| {name} | {kind} | {found['negatives'] / found['queries']:.1f} | "
                f"{found['queries_without_negative']:,} | {dropped:,} | {above} | "
                f"{found['seconds']:.0f} |"
            )
    return lines


if __name__ == "__main__":
    main()
