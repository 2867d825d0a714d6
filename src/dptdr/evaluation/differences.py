"""Per-query differences between two systems."""

from collections.abc import Mapping
from typing import NamedTuple

from dptdr.errors import EvaluationError


class QueryDifference(NamedTuple):
    """One query's values in two systems; ``difference`` is a minus b."""

    query_id: str
    a: float
    b: float
    difference: float


def query_differences(a: Mapping[str, float], b: Mapping[str, float]) -> list[QueryDifference]:
    """Compute each query's difference, sorted from the largest gain of a.

    Raises:
        EvaluationError: If the queries differ.
    """
    if a.keys() != b.keys():
        odd = min(a.keys() ^ b.keys())
        raise EvaluationError(f"expected the same queries in both systems; '{odd}' is only in one")
    entries = [QueryDifference(key, a[key], b[key], a[key] - b[key]) for key in a]
    return sorted(entries, key=lambda entry: (-entry.difference, entry.query_id))
