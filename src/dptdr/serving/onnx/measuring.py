"""Measure the retrieval quality of an 8-bit graph against torch."""

import sys
from pathlib import Path

from dptdr.errors import ConfigError
from dptdr.evaluation import evaluate
from dptdr.io.beir import BeirFolder
from dptdr.model.backbone import Backbone
from dptdr.records import Hit, Run
from dptdr.search.indexes.exact import exact_top_k
from dptdr.serving.engine.batching import BatchLimits
from dptdr.serving.engine.engine import Engine
from dptdr.serving.engine.forward import Forward
from dptdr.serving.engine.requests import EngineSettings
from dptdr.serving.onnx.forward import OnnxForward
from dptdr.serving.tasks.registry import BARE, TaskRegistry


def ndcg_of(
    backbone: Backbone, export: Path, *, task: Path | None, data: Path, split: str, state: Path
) -> dict[str, float]:
    """Measure nDCG@10 with ``torch`` and with an export's ``int8`` graph.

    Args:
        export: The export's folder.
        task: A task; ``None`` for the bare backbone.
        data: A BEIR folder.
        state: A folder for the registry.

    Raises:
        ConfigError: If the data has no such split.
    """
    folder = BeirFolder(data)
    if not folder.has_split(split):
        raise ConfigError(f"{data}: expected one of the splits {folder.splits()}, got '{split}'")
    forwards = {
        "torch": Forward(backbone, layout="padded", ordered=False),
        "int8": OnnxForward(backbone, export),
    }
    return {
        name: _ndcg(forward, folder, task=task, split=split, state=state / name)
        for name, forward in forwards.items()
    }


def _ndcg(
    forward: Forward, folder: BeirFolder, *, task: Path | None, split: str, state: Path
) -> float:
    registry = TaskRegistry(forward, state=state)
    name = BARE if task is None else registry.add("task", task).name
    qrels = folder.qrels(split)
    queries = [query for query in folder.queries() if query.id in qrels]
    passages = list(folder.passages())
    limits = BatchLimits(batch_texts=64, cost="padded")
    unbounded = EngineSettings(batch=limits, request_tokens=sys.maxsize, check_every=0)
    with Engine(registry, settings=unbounded) as engine:
        asked = engine.encode([query.text for query in queries], task=name, side="query")
        stored = engine.encode([p.content for p in passages], task=name, side="passage")
    scores, rows = exact_top_k(asked, stored, depth=10)
    run: Run = {
        query.id: [Hit(passages[row].id, float(score)) for score, row in zip(s, r, strict=True)]
        for query, s, r in zip(queries, scores, rows, strict=True)
    }
    return evaluate(run, qrels, measures=("nDCG@10",)).measures["nDCG@10"]
