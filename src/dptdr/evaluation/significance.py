"""Paired significance tests over queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dptdr.errors import EvaluationError

# Values drawn at once, which bounds memory for any number of queries.
_BLOCK_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Comparison of two systems on the same queries; differences are a minus b.

    Attributes:
        mean_difference: Mean of a minus mean of b.
        p_randomisation: Two-sided p-value of the paired randomisation test.
        p_t: Two-sided p-value of the paired t-test; 1 if all differences are 0.
        interval_low: Lower bound of the 95 % bootstrap interval of the mean difference.
        interval_high: Its upper bound.
        better: Number of queries with a above b.
        worse: Number of queries with a below b.
        n: Number of queries.
    """

    mean_difference: float
    p_randomisation: float
    p_t: float
    interval_low: float
    interval_high: float
    better: int
    worse: int
    n: int


def paired_test(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    permutations: int = 20_000,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Compare two systems by their per-query values.

    Args:
        permutations: Number of sign patterns drawn for the randomisation test; if fewer exist, all
            are used and the p-value is exact.
        resamples: Number of bootstrap samples for the interval.

    Raises:
        EvaluationError: If the queries differ, or there are fewer than 2.
        ValueError: If permutations or resamples is below 1.

    Source:
        Randomisation: Smucker, Allan, Carterette, CIKM 2007. Differs: with drawn patterns, the
            p-value
        is (hits + 1) / (drawn + 1), which is never 0 (Phipson, Smyth 2010).
    """
    if permutations < 1 or resamples < 1:
        raise ValueError("expected at least one permutation and one resample")
    if a.keys() != b.keys():
        only_a, only_b = len(a.keys() - b.keys()), len(b.keys() - a.keys())
        raise EvaluationError(
            "expected the same queries in both systems, got "
            f"{only_a} only in the first and {only_b} only in the second"
        )
    if len(a) < 2:
        raise EvaluationError(f"expected at least 2 queries for a paired test, got {len(a)}")
    # Sort the ids, so that results do not depend on file order.
    differences = np.array([a[query_id] - b[query_id] for query_id in sorted(a)], dtype=np.float64)
    low, high = _bootstrap_interval(differences, resamples=resamples, seed=seed)
    return PairedTest(
        mean_difference=float(differences.mean()),
        p_randomisation=randomisation_p(differences, permutations=permutations, seed=seed),
        p_t=_t_test_p(differences),
        interval_low=low,
        interval_high=high,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        n=len(a),
    )


def randomisation_p(
    differences: Float[np.ndarray, " queries"], *, permutations: int, seed: int
) -> float:
    """Compute the two-sided p-value of the paired randomisation test.

    Args:
        permutations: Number of sign patterns to draw; if no more exist, all are used.

    Returns:
        Fraction of sign patterns with a sum at least as far from 0 as the observed sum.
    """
    # Differences of 0 are unaffected by their sign.
    moving = differences[differences != 0]
    if moving.size == 0:
        return 1.0
    # Summation order changes the last bits; the tolerance keeps equal sums equal.
    seen = abs(moving.sum()) - 1e-12 * np.abs(moving).sum()
    if moving.size < 60 and 2**moving.size <= permutations:
        patterns = np.arange(2**moving.size)[:, None] >> np.arange(moving.size) & 1
        return float((np.abs((patterns * 2 - 1) @ moving) >= seen).mean())
    generator = np.random.default_rng(seed)
    total = moving.sum()
    hits = 0
    block = max(1, _BLOCK_VALUES // moving.size)
    for start in range(0, permutations, block):
        shape = (min(block, permutations - start), moving.size)
        flipped = generator.integers(0, 2, size=shape, dtype=np.uint8).astype(np.float64)
        hits += int((np.abs(total - 2 * (flipped @ moving)) >= seen).sum())
    return (hits + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons.

    Returns:
        Adjusted p-values in the same order; below .05 means significant at 5 % over all.

    Source:
        Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _t_test_p(differences: Float[np.ndarray, " queries"]) -> float:
    from scipy import stats

    if np.ptp(differences) == 0:
        # Zero variance: the statistic is 0/0 without differences, infinite if all are equal.
        return 1.0 if differences[0] == 0 else 0.0
    # The statistic is scale-invariant, but the square of a tiny difference underflows to 0.
    scaled = differences / np.abs(differences).max()
    return float(stats.ttest_1samp(scaled, 0.0).pvalue)


def _bootstrap_interval(
    differences: Float[np.ndarray, " queries"], *, resamples: int, seed: int
) -> tuple[float, float]:
    # A separate stream, so that the interval does not depend on the number of permutations.
    generator = np.random.default_rng([seed, 1])
    block = max(1, _BLOCK_VALUES // differences.size)
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        rows = generator.integers(0, differences.size, size=(count, differences.size))
        means[start : start + count] = differences[rows].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
