"""Make a data set from pairs of texts: no duplicates, no leaks, split by source unit."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dptdr.errors import DataError
from dptdr.io.ids import normalised

TEST_SHARE = 0.15
DEV_SHARE = 0.05
MIN_TEST_QUERIES = 500


class Pair(NamedTuple):
    """A query, its passage, and the source unit of both."""

    id: str
    query: str
    passage: str
    unit: str


def clean_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs whose query occurs once and has one answer that does not quote it.

    A query text that several definitions share is dropped with all of its passages: each of them
    would be a right answer that counts as a wrong one. Of equal passages the first stays. Letter
    case and white space make no difference.
    """
    seen: set[str] = set()
    once: list[Pair] = []
    for pair in pairs:
        passage = _plain(pair.passage)
        if passage not in seen and _plain(pair.query) not in passage:
            seen.add(passage)
            once.append(pair)
    uses = Counter(_plain(pair.query) for pair in once)
    named: Counter[str] = Counter()
    kept: list[Pair] = []
    for pair in once:
        if uses[_plain(pair.query)] == 1:
            named[pair.id] += 1
            count = named[pair.id]
            kept.append(pair if count == 1 else pair._replace(id=f"{pair.id}#{count}"))
    return kept


def _plain(text: str) -> str:
    return normalised(text).rstrip(".")


def sample_pairs(pairs: list[Pair], *, count: int, seed: int) -> list[Pair]:
    """Return at most ``count`` random pairs, in their original order."""
    if len(pairs) <= count:
        return pairs
    chosen = random.Random(f"pairs {seed}").sample(range(len(pairs)), count)
    return [pairs[index] for index in sorted(chosen)]


def split_by_unit(pairs: list[Pair], *, seed: int) -> dict[str, str]:
    """Return the split that each source unit belongs to.

    Units are taken in random order; each goes to test while it fits there, else to dev while it
    fits there, else to train. So every split is made of whole units. A unit that would fill more
    than a fifth of the test split goes to train: no single file may decide the measure.

    Raises:
        DataError: If there are too few pairs for a test split to measure with.
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
            f"found {len(pairs)} documented definitions and {tested} of them for the test split, "
            f"expected at least {3 * MIN_TEST_QUERIES} and {MIN_TEST_QUERIES}; "
            "use a Python installation with its sources"
        )
    return splits
