"""Self-check of a running server: compare a mixed batch with each row computed separately."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from dptdr.model.backbone import Side
from dptdr.serving.engine.results import CheckReport
from dptdr.serving.forward import BatchRow, Forward
from dptdr.serving.tasks.registry import TaskRegistry


def mixture(
    registry: TaskRegistry, texts: Sequence[str], *, rows: int, generator: random.Random
) -> list[BatchRow]:
    """Sample rows over tasks (including the bare backbone), versions, sides and texts."""
    versions = [registry.bare]
    tasks = list(registry.tasks().values())
    for task in generator.sample(tasks, min(len(tasks), rows)):
        versions += task.versions.values()
    mixed = []
    for number in range(rows):
        version = versions[number % len(versions)]
        side: Side = generator.choice(("query", "passage"))
        limit = version.limits.of(side)
        (ids,) = registry.forward.tokenize([generator.choice(texts)], side=side, max_tokens=limit)
        mixed.append(BatchRow(ids, registry.prompt(version, side)))
    return mixed


def compare(
    forward: Forward, rows: Sequence[BatchRow], vectors: Float[np.ndarray, "rows dim"]
) -> CheckReport:
    """Compare the vectors of a mixed batch with each row computed separately."""
    alone = torch.stack([forward.single(row) for row in rows]).float().cpu().numpy()
    scale = max(1.0, float(np.linalg.norm(alone, axis=1).max()))
    difference = float(np.abs(alone - vectors).max()) / scale
    return CheckReport(
        rows=len(rows),
        tasks=len({id(row.prompt) for row in rows}),
        difference=difference,
        # Phrased so that NaN fails the check.
        passed=difference <= forward.tolerance,
    )
