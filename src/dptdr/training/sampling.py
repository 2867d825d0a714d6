"""Sampling as a pure function of (seed, step), so that resuming needs no state."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# Independent random streams start their seed sequence with different numbers.
_ORDER, _POSITIVE, _NEGATIVES = 1, 2, 3


def batch_items(*, items: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """Return the (epoch, item) pairs of one step.

    Each epoch visits every item once, in an order drawn from (seed, epoch). A batch may span two
    epochs, so that no item is dropped.

    Args:
        items: Number of training groups, at least 1.
        step: Step, counted from 0.

    Returns:
        ``batch_size`` pairs.

    Raises:
        ValueError: If there are no items.
    """
    if items < 1:
        raise ValueError("expected at least one training group, got none")
    first = step * batch_size
    pairs = []
    for place in range(first, first + batch_size):
        epoch, offset = divmod(place, items)
        pairs.append((epoch, int(epoch_order(items=items, epoch=epoch, seed=seed)[offset])))
    return pairs


_CACHE: dict[tuple[int, int, int], Int[np.ndarray, " items"]] = {}


def epoch_order(*, items: int, epoch: int, seed: int) -> Int[np.ndarray, " items"]:
    """Return the order of items in an epoch; the last two epochs are cached."""
    key = (items, epoch, seed)
    if key not in _CACHE:
        while len(_CACHE) >= 2:
            del _CACHE[next(iter(_CACHE))]
        generator = np.random.default_rng([_ORDER, seed, epoch])
        _CACHE[key] = generator.permutation(items)
    return _CACHE[key]


def draw_positives(count: int, *, wanted: int = 1, seed: int, epoch: int, item: int) -> list[int]:
    """Choose which of a query's positives to use in an epoch.

    Args:
        count: Number of positives, at least 1.
        wanted: Number to draw; if there are fewer, all are used once.

    Returns:
        Distinct indices below ``count``; the first does not depend on ``wanted``.
    """
    generator = np.random.default_rng([_POSITIVE, seed, epoch, item])
    first = int(generator.integers(count))
    others = [place for place in range(count) if place != first]
    more = generator.choice(len(others), size=min(len(others), wanted - 1), replace=False)
    return [first, *sorted(others[int(place)] for place in more)]


def draw_negatives(count: int, *, wanted: int, seed: int, epoch: int, item: int) -> list[int]:
    """Choose which of a query's mined negatives to use in an epoch.

    If there are fewer than ``wanted``, all are used once; in-batch negatives make up the rest.

    Returns:
        Distinct indices below ``count``, sorted.
    """
    generator = np.random.default_rng([_NEGATIVES, seed, epoch, item])
    chosen = generator.choice(count, size=min(count, wanted), replace=False)
    return sorted(int(place) for place in chosen)


def split_evenly(
    items: Sequence[tuple[int, int]], *, rank: int, world: int
) -> list[tuple[int, int]]:
    """Return one rank's share of a step: every ``world``-th item, starting at its rank."""
    return list(items[rank::world])
