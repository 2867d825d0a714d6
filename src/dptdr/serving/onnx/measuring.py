"""Measure the retrieval quality of an 8-bit graph against torch."""

import sys
from pathlib import Path

from dptdr.evaluation import evaluate
from dptdr.io.beir import BeirFolder
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import read_manifest
from dptdr.records import Hit, Run
from dptdr.search.exact import exact_top_k
from dptdr.search.ranking import judged_queries
from dptdr.serving.engine.batching import BatchLimits
from dptdr.serving.engine.engine import Engine
from dptdr.serving.engine.results import EngineSettings
from dptdr.serving.forward import Forward
from dptdr.serving.onnx.int8_forward import OnnxForward, check_supported
from dptdr.serving.tasks.registry import BARE, TaskRegistry
from dptdr.serving.tasks.validation import deep_prompt_config


def check_measurable(*, task: Path | None, data: Path, split: str) -> None:
    """Check task and data before a graph is exported, which takes minutes.

    Raises:
        DataError: If the data has no such split, or a judged query has no text.
        ServingError: If the task cannot share batches with others.
        ConfigError: If the graphs do not support its prompt.
    """
    judged_queries(BeirFolder(data), split)
    if task is not None:
        config = deep_prompt_config(read_manifest(task), task)
        check_supported(feed_forward=bool(config.ffn_length), shifted=config.position == "shifted")


def ndcg_of(
    backbone: Backbone, export: Path, *, task: Path | None, data: Path, split: str, state: Path
) -> dict[str, float]:
    """Measure nDCG@10 with ``torch`` and with an export's ``int8`` graph.

    Args:
        export: The export's folder.
        task: A task; ``None`` for the bare backbone.
        data: A BEIR folder.
        state: A folder for the registry.
    """
    folder = BeirFolder(data)
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
    queries, qrels = judged_queries(folder, split)
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
