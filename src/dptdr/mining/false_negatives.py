"""Which candidates are false negatives, by a teacher's scores."""

from collections.abc import Sequence

from dptdr.mining.settings import CleaningSettings, PositiveScore

REASONS = ("above", "margin", "percent")


def reference_score(scores: Sequence[float], *, which: PositiveScore) -> float:
    """Return the score of the positive that candidates are held against.

    Args:
        scores: The teacher's scores of the query's positives, at least one.
        which: Lowest, mean or highest.
    """
    if which == "mean":
        return sum(scores) / len(scores)
    return min(scores) if which == "min" else max(scores)


def removal_reason(score: float, *, positive: float, settings: CleaningSettings) -> str | None:
    """Return why a candidate is taken for a false negative, None where it is kept.

    Args:
        score: The teacher's score of the candidate.
        positive: The score of the positive; see :func:`reference_score`.

    Returns:
        ``above``, ``margin`` or ``percent``: the first bound that the candidate breaks.

    Source:
        Margin and percentage: Moreira et al., NV-Retriever (2024), section 3. Differs: bounds can
        be joined, and a percentage of a score that is not above 0 bounds nothing.
    """
    if settings.drop_above is not None and score >= settings.drop_above:
        return "above"
    if settings.margin is not None and score > positive - settings.margin:
        return "margin"
    if settings.percent is not None and 0 < positive * settings.percent / 100 < score:
        return "percent"
    return None
