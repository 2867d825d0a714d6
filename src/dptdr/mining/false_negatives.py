"""Detect false negatives by teacher scores."""

from collections.abc import Sequence

from dptdr.mining.settings import FilteringSettings, PositiveScore


def reference_score(scores: Sequence[float], *, which: PositiveScore) -> float:
    """Return the positives' score that candidates are compared to."""
    if which == "mean":
        return sum(scores) / len(scores)
    return min(scores) if which == "min" else max(scores)


def removal_reason(score: float, *, positive: float, settings: FilteringSettings) -> str | None:
    """Return the name of the first filter that removes a candidate, or ``None`` if it is kept.

    Source:
        The two margins: Moreira et al., NV-Retriever (2024), section 3. Differs: bounds can be
        combined, and the relative margin does not apply to positive scores of 0 or below.
    """
    if settings.max_score is not None and score >= settings.max_score:
        return "max_score"
    if settings.absolute_margin is not None and score > positive - settings.absolute_margin:
        return "absolute_margin"
    margin = settings.relative_margin
    if margin is not None and 0 < positive * (1 - margin) < score:
        return "relative_margin"
    return None
