"""Hybrid search: fuse several rankings of the same queries."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from dptdr.errors import VectorsError
from dptdr.evaluation import evaluate
from dptdr.records import Hit, Qrels, Run

Fusion: TypeAlias = Literal["rrf", "min-max", "z-score"]
FUSIONS: tuple[str, ...] = get_args(Fusion)
_RRF = 60


class Tuned(NamedTuple):
    """The best fusion weights on a set of judged queries."""

    weights: tuple[float, ...]
    measure: str
    value: float
    """Measure achieved with these weights on the tuning queries."""
    tried: dict[tuple[float, ...], float]
    """Measure achieved by each combination of weights."""


def fuse(
    runs: Sequence[Mapping[str, Sequence[Hit]]],
    *,
    fusion: Fusion = "rrf",
    weights: Sequence[float] | None = None,
    depth: int = 1000,
) -> Run:
    """Fuse several runs into one.

    ``rrf`` sums ``weight / (60 + rank)`` and ignores scores. The other methods normalise the
    scores of each query and sum ``weight * score``: ``min-max`` scales them to [0, 1], ``z-score``
    to mean 0 and standard deviation 1. A passage missing from a run gets that run's lowest
    normalised score.

    Args:
        runs: At least one run; they need not cover the same queries.
        weights: One non-negative weight per run; equal by default.

    Returns:
        The fused run; ties are broken by passage id.

    Raises:
        VectorsError: If there are no runs, or the weights do not match them.

    Source:
        Cormack, Clarke, Buettcher, Reciprocal Rank Fusion (SIGIR 2009), constant 60; Fox and Shaw,
        Combination of Multiple Searches (TREC-2), CombSUM over normalised scores. Differs: weights,
        and the lowest normalised score instead of 0 for missing passages.
    """
    shares = _check_weights(runs, weights)
    fused: Run = {}
    for query_id in dict.fromkeys(itertools.chain.from_iterable(runs)):
        total: dict[str, float] = {}
        rankings = [run.get(query_id, ()) for run in runs]
        names = dict.fromkeys(hit.passage_id for hits in rankings for hit in hits)
        for hits, share in zip(rankings, shares, strict=True):
            if fusion == "rrf":
                points = {hit.passage_id: 1 / (_RRF + r) for r, hit in enumerate(hits, start=1)}
                missing = 0.0
            else:
                points = _scaled(hits, fusion)
                missing = min(points.values(), default=0.0)
            for name in names:
                total[name] = total.get(name, 0.0) + share * points.get(name, missing)
        best = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:depth]
        fused[query_id] = [Hit(name, score) for name, score in best]
    return fused


def tune_weights(
    runs: Sequence[Mapping[str, Sequence[Hit]]],
    qrels: Qrels,
    *,
    fusion: Fusion = "min-max",
    measure: str = "nDCG@10",
    steps: int = 10,
    depth: int = 100,
) -> Tuned:
    """Find the fusion weights, summing to 1, that work best on judged queries.

    Tries every combination of multiples of ``1 / steps``; ties go to the most even weights. Tune
    on dev queries, never on the test queries you report.

    Args:
        qrels: Judgements of the dev queries.
        steps: Number of grid steps between 0 and 1.

    Returns:
        The best weights and the measures achieved.

    Raises:
        VectorsError: If ``steps`` is below 1.
    """
    if steps < 1:
        raise VectorsError(f"expected at least 1 step, got {steps}")
    judged = [{name: run[name] for name in qrels if name in run} for run in runs]
    tried: dict[tuple[float, ...], float] = {}
    for parts in itertools.product(range(steps + 1), repeat=len(runs)):
        if sum(parts) != steps:
            continue
        weights = tuple(part / steps for part in parts)
        fused = fuse(judged, fusion=fusion, weights=weights, depth=depth)
        tried[weights] = evaluate(fused, qrels, measures=[measure]).measures[measure]
    best = max(tried, key=lambda weights: (tried[weights], -sum(w * w for w in weights), weights))
    return Tuned(best, measure, tried[best], tried)


def _check_weights(
    runs: Sequence[Mapping[str, Sequence[Hit]]], weights: Sequence[float] | None
) -> list[float]:
    if not runs:
        raise VectorsError("expected at least one run to fuse, got none")
    if weights is None:
        return [1.0] * len(runs)
    if len(weights) != len(runs) or any(not weight >= 0 for weight in weights) or not any(weights):
        raise VectorsError(
            f"expected {len(runs)} non-negative weights, not all 0, got {list(weights)}"
        )
    return list(weights)


def _scaled(hits: Sequence[Hit], fusion: Fusion) -> dict[str, float]:
    """Normalise the scores of one ranking."""
    if not hits:
        return {}
    scores = [hit.score for hit in hits]
    if fusion == "min-max":
        lowest, span = min(scores), max(scores) - min(scores)
    else:
        lowest = math.fsum(scores) / len(scores)
        span = math.sqrt(math.fsum((score - lowest) ** 2 for score in scores) / len(scores))
    # All scores are equal: treat them as the maximum (min-max) or the mean (z-score).
    if span == 0:
        return {hit.passage_id: 1.0 if fusion == "min-max" else 0.0 for hit in hits}
    return {hit.passage_id: (hit.score - lowest) / span for hit in hits}
