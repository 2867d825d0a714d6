"""What each step trains on: a pure function of (seed, step), so that resuming needs no state."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# Streams that must not be correlated get different first words in the seed sequence.
_ORDER, _POSITIVE, _NEGATIVES = 1, 2, 3


def batch_items(*, items: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """Return the (epoch, item) pairs of one step.

    Each epoch visits every item once, in an order drawn from (seed, epoch). A batch may straddle
    two epochs, so no item is ever dropped.

    Args:
        items: Number of training groups, at least 1.
        step: Step, counted from 0.

    Returns:
        ``batch_size`` pairs.

    Raises:
        ValueError: If there are no items.
    """
    if items < 1:
        raise ValueError("there is nothing to train on: no training group")
    first = step * batch_size
    pairs = []
    for place in range(first, first + batch_size):
        epoch, offset = divmod(place, items)
        pairs.append((epoch, int(epoch_order(items=items, epoch=epoch, seed=seed)[offset])))
    return pairs


_CACHE: dict[tuple[int, int, int], Int[np.ndarray, " items"]] = {}


def epoch_order(*, items: int, epoch: int, seed: int) -> Int[np.ndarray, " items"]:
    """Return the order in which an epoch visits the items; the last two epochs are remembered."""
    key = (items, epoch, seed)
    if key not in _CACHE:
        while len(_CACHE) >= 2:
            del _CACHE[next(iter(_CACHE))]
        generator = np.random.default_rng([_ORDER, seed, epoch])
        _CACHE[key] = generator.permutation(items)
    return _CACHE[key]


def draw_positives(count: int, *, wanted: int = 1, seed: int, epoch: int, item: int) -> list[int]:
    """Return which of a query's positives this epoch trains on.

    Args:
        count: Positives there are, at least 1.
        wanted: Positives asked for; fewer are all taken, once each.

    Returns:
        Different positions below ``count``; the first does not depend on ``wanted``.
    """
    generator = np.random.default_rng([_POSITIVE, seed, epoch, item])
    first = int(generator.integers(count))
    others = [place for place in range(count) if place != first]
    more = generator.choice(len(others), size=min(len(others), wanted - 1), replace=False)
    return [first, *sorted(others[int(place)] for place in more)]


def draw_negatives(count: int, *, wanted: int, seed: int, epoch: int, item: int) -> list[int]:
    """Return which mined negatives of a query this epoch trains on.

    Fewer than wanted are all taken, once each; the batch's other passages make up the rest.

    Returns:
        Different positions below ``count``, sorted.
    """
    generator = np.random.default_rng([_NEGATIVES, seed, epoch, item])
    chosen = generator.choice(count, size=min(count, wanted), replace=False)
    return sorted(int(place) for place in chosen)


def split_evenly(
    items: Sequence[tuple[int, int]], *, rank: int, world: int
) -> list[tuple[int, int]]:
    """Return one process's share of a step's items: every ``world``-th, beginning at its rank."""
    return list(items[rank::world])
