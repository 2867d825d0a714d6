"""Paired tests against values by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from dptdr.errors import EvaluationError
from dptdr.evaluation import holm, paired_test, query_differences


def _values(numbers) -> dict[str, float]:
    return {f"q{index:04d}": float(number) for index, number in enumerate(numbers)}


def test_paired_test_of_few_queries_enumerates_all_sign_patterns():
    # 1, 2, 3 with all 8 signs: sums -6 -4 -2 0 0 2 4 6; two are at least as far as 6.
    result = paired_test(_values([1, 2, 3]), _values([0, 0, 0]))
    assert result.p_randomisation == 2 / 8
    assert result.mean_difference == 2.0
    assert (result.better, result.worse, result.n) == (3, 0, 3)


def test_paired_test_agrees_with_scipy_on_many_queries():
    generator = np.random.default_rng(5)
    a, b = generator.random(200), generator.random(200) - 0.05
    result = paired_test(_values(a), _values(b))
    assert result.p_t == pytest.approx(stats.ttest_rel(a, b).pvalue)
    reference = stats.permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert result.p_randomisation == pytest.approx(reference.pvalue, abs=0.01)
    assert result.interval_low < (a - b).mean() < result.interval_high
    half_width = 1.96 * (a - b).std() / 200**0.5
    assert result.interval_high - result.interval_low == pytest.approx(2 * half_width, rel=0.05)


def test_paired_test_is_the_same_for_the_same_seed_and_any_order_of_queries():
    generator = np.random.default_rng(2)
    a, b = _values(generator.random(50)), _values(generator.random(50))
    backwards = dict(reversed(a.items()))
    assert paired_test(a, b, seed=7) == paired_test(backwards, b, seed=7)
    assert paired_test(a, b, seed=7) != paired_test(a, b, seed=8)


def test_paired_test_of_equal_systems_finds_nothing():
    same = _values([0.5, 1.0, 0.0])
    result = paired_test(same, same)
    assert (result.p_randomisation, result.p_t, result.mean_difference) == (1.0, 1.0, 0.0)


def test_paired_test_of_a_constant_gain_has_no_p_value_from_noise():
    result = paired_test(_values([0.75] * 12), _values([0.5] * 12))
    assert result.p_t == 0.0
    assert result.p_randomisation == 2 / 2**12


def test_paired_test_p_is_never_zero_when_patterns_are_drawn():
    result = paired_test(_values([1] * 100), _values([0] * 100), permutations=999)
    assert result.p_randomisation == 1 / 1000


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"x": 1.0, "y": 1.0}, {"x": 1.0, "z": 1.0}, "1 only in the first and 1 only in the sec"),
        ({"x": 1.0}, {"x": 0.0}, "at least 2 queries for a paired test, got 1"),
    ],
)
def test_paired_test_refuses_sides_that_do_not_fit(a, b, message):
    with pytest.raises(EvaluationError, match=message):
        paired_test(a, b)


def test_holm_adjusts_by_rank_and_never_falls_along_the_order():
    # Sorted .01 .02 .04 times 3, 2, 1 = .03 .04 .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_query_differences_lists_gains_first_and_breaks_ties_by_id():
    a, b = {"q2": 1.0, "q1": 1.0, "q3": 0.0}, {"q2": 0.5, "q1": 0.5, "q3": 0.25}
    entries = query_differences(a, b)
    assert [entry.query_id for entry in entries] == ["q1", "q2", "q3"]
    assert entries[2].difference == -0.25


def test_query_differences_names_an_odd_query():
    with pytest.raises(EvaluationError, match="'q9' is only in one"):
        query_differences({"q9": 1.0}, {})
