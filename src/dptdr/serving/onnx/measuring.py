"""What the 8-bit graph costs in retrieval quality, against torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dptdr.errors import ConfigError
from dptdr.evaluation import evaluate
from dptdr.io.beir import BeirFolder
from dptdr.model.backbone import Backbone, Side
from dptdr.model.encoder import length_sorted_batches
from dptdr.records import Hit, Run
from dptdr.search.indexes.exact import exact_top_k
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.onnx.forward import OnnxForward
from dptdr.serving.tasks.registry import BARE, TaskRegistry

_BATCH_TOKENS = 4096


def ndcg_of(
    backbone: Backbone, export: Path, *, task: Path | None, data: Path, split: str, state: Path
) -> dict[str, float]:
    """Return nDCG@10 of ``torch`` and of an export's ``int8`` graph.

    Args:
        backbone: The encoder.
        export: The export's folder.
        task: A task; ``None``: the bare backbone.
        data: BEIR folder.
        split: Its judged queries.
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
    if task is not None:
        registry.add("task", task)
    name = BARE if task is None else "task"
    qrels = folder.qrels(split)
    queries = [query for query in folder.queries() if query.id in qrels]
    passages = list(folder.passages())
    asked = _encode(registry, name, [query.text for query in queries], side="query")
    stored = _encode(registry, name, [passage.content for passage in passages], side="passage")
    scores, rows = exact_top_k(asked, stored, depth=10)
    run: Run = {
        query.id: [Hit(passages[row].id, float(score)) for score, row in zip(s, r, strict=True)]
        for query, s, r in zip(queries, scores, rows, strict=True)
    }
    return evaluate(run, qrels, measures=("nDCG@10",)).measures["nDCG@10"]


def _encode(
    registry: TaskRegistry, name: str, texts: Sequence[str], *, side: Side
) -> Float[np.ndarray, "texts dim"]:
    version = registry.resolve(name)
    forward = registry.forward
    ids = forward.tokenize(texts, side=side, max_tokens=version.limits.of(side))
    prompt = registry.prompt(version, side)
    vectors = np.empty((len(texts), forward.backbone.dim), dtype=np.float32)
    lengths = [len(row) for row in ids]
    for batch in length_sorted_batches(lengths, token_budget=_BATCH_TOKENS, most_texts=64):
        made = forward.vectors([Row(ids[i], prompt) for i in batch])
        vectors[batch] = made.cpu().numpy()
    return vectors
