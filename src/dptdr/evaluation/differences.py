"""Differences of two systems per query."""

from collections.abc import Mapping
from typing import NamedTuple

from dptdr.errors import EvaluationError


class QueryDifference(NamedTuple):
    """One query's value in two systems; ``difference`` is a minus b."""

    query_id: str
    a: float
    b: float
    difference: float


def query_differences(a: Mapping[str, float], b: Mapping[str, float]) -> list[QueryDifference]:
    """Return each query's difference, the largest gain of a first.

    Raises:
        EvaluationError: If the two do not hold the same queries.
    """
    if a.keys() != b.keys():
        odd = min(a.keys() ^ b.keys())
        raise EvaluationError(f"expected the same queries on both sides; '{odd}' is only in one")
    entries = [QueryDifference(key, a[key], b[key], a[key] - b[key]) for key in a]
    return sorted(entries, key=lambda entry: (-entry.difference, entry.query_id))
