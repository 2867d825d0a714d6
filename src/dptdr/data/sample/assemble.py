"""Build a data set from pairs of texts without duplicates or leaks, split by source unit."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dptdr.errors import DataError
from dptdr.io.ids import normalised

TEST_SHARE = 0.15
DEV_SHARE = 0.05
MIN_TEST_QUERIES = 500


class SamplePair(NamedTuple):
    """A query, its passage and their source unit."""

    id: str
    query: str
    passage: str
    unit: str


def clean_pairs(pairs: Iterable[SamplePair]) -> list[SamplePair]:
    """Keep pairs with a unique query and a unique passage that does not quote the query.

    Queries shared by several definitions are dropped with all their passages, to avoid false
    negatives. Of duplicate passages, the first is kept. Case and whitespace are ignored.
    """
    seen: set[str] = set()
    once: list[SamplePair] = []
    for pair in pairs:
        passage = _plain(pair.passage)
        if passage not in seen and _plain(pair.query) not in passage:
            seen.add(passage)
            once.append(pair)
    uses = Counter(_plain(pair.query) for pair in once)
    named: Counter[str] = Counter()
    kept: list[SamplePair] = []
    for pair in once:
        if uses[_plain(pair.query)] == 1:
            named[pair.id] += 1
            count = named[pair.id]
            kept.append(pair if count == 1 else pair._replace(id=f"{pair.id}#{count}"))
    return kept


def _plain(text: str) -> str:
    return normalised(text).rstrip(".")


def sample_pairs(pairs: list[SamplePair], *, count: int, seed: int) -> list[SamplePair]:
    """Sample at most ``count`` pairs, in their original order."""
    if len(pairs) <= count:
        return pairs
    chosen = random.Random(f"pairs {seed}").sample(range(len(pairs)), count)
    return [pairs[index] for index in sorted(chosen)]


def split_by_unit(pairs: list[SamplePair], *, seed: int) -> dict[str, str]:
    """Assign each source unit to a split.

    Units are assigned in random order to test while they fit, then to dev, then to train. A unit
    larger than a fifth of the test split goes to train, so that no single file dominates the
    measures.

    Raises:
        DataError: If there are too few pairs for a useful test split.
    """
    sizes = Counter(pair.unit for pair in pairs)
    test_size = max(MIN_TEST_QUERIES, round(TEST_SHARE * len(pairs)))
    room = {"test": test_size, "dev": round(DEV_SHARE * len(pairs))}
    units = sorted(sizes)
    random.Random(f"units {seed}").shuffle(units)
    splits: dict[str, str] = {}
    for unit in units:
        fits = [name for name, left in room.items() if sizes[unit] <= min(left, test_size // 5)]
        split = splits[unit] = fits[0] if fits else "train"
        if split in room:
            room[split] -= sizes[unit]
    tested = test_size - room["test"]
    if tested < MIN_TEST_QUERIES or len(pairs) < 3 * MIN_TEST_QUERIES:
        raise DataError(
            f"expected at least {3 * MIN_TEST_QUERIES} documented definitions, "
            f"{MIN_TEST_QUERIES} of them for the test split, got {len(pairs)} and {tested}; "
            "use a Python installation that includes its sources"
        )
    return splits
