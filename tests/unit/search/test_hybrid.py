import pytest

from dptdr.errors import VectorsError
from dptdr.records import Hit
from dptdr.search.hybrid import fuse, tune_weights

FIRST = {"q": [Hit("a", 9.0), Hit("b", 5.0), Hit("c", 1.0)]}
SECOND = {"q": [Hit("c", 0.4), Hit("d", 0.2)]}


def scores(run):
    return {hit.passage_id: hit.score for hit in run["q"]}


def test_reciprocal_rank_fusion_by_hand():
    fused = fuse([FIRST, SECOND], fusion="rrf")
    assert [hit.passage_id for hit in fused["q"]] == ["c", "a", "b", "d"]
    assert scores(fused) == pytest.approx(
        {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
    )


def test_weights_multiply_the_share_of_a_run():
    fused = fuse([FIRST, SECOND], fusion="rrf", weights=[1.0, 3.0])
    assert scores(fused)["d"] == pytest.approx(3 / 62)


def test_min_max_fusion_by_hand():
    fused = fuse([FIRST, SECOND], fusion="min-max", weights=[0.5, 0.5])
    # First: a 1, b .5, c 0, missing 0. Second: c 1, d 0, missing 0.
    assert scores(fused) == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.5, "d": 0.0})
    assert [hit.passage_id for hit in fused["q"]] == ["a", "c", "b", "d"]


def test_z_score_fusion_by_hand():
    fused = fuse([FIRST, SECOND], fusion="z-score", weights=[1.0, 1.0])
    deviation = (32 / 3) ** 0.5
    # Second: mean .3, deviation .1; missing takes the lowest of each.
    assert scores(fused) == pytest.approx(
        {
            "a": 4 / deviation - 1,
            "b": 0 - 1,
            "c": -4 / deviation + 1,
            "d": -4 / deviation - 1,
        }
    )


@pytest.mark.parametrize("fusion", ["rrf", "min-max", "z-score"])
def test_one_run_alone_keeps_its_order(fusion):
    fused = fuse([FIRST], fusion=fusion)
    assert [hit.passage_id for hit in fused["q"]] == ["a", "b", "c"]


@pytest.mark.parametrize("fusion", ["min-max", "z-score"])
def test_equal_scores_do_not_divide_by_zero(fusion):
    fused = fuse([{"q": [Hit("b", 2.0), Hit("a", 2.0)]}], fusion=fusion)
    assert [hit.passage_id for hit in fused["q"]] == ["a", "b"]


def test_a_query_of_one_run_only_and_an_empty_ranking_are_kept():
    fused = fuse([{"x": [Hit("a", 1.0)], "e": []}, SECOND], depth=1)
    assert {name: [hit.passage_id for hit in hits] for name, hits in fused.items()} == {
        "x": ["a"], "e": [], "q": ["c"],
    }  # fmt: skip


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(VectorsError, match="expected 2 non-negative weights"):
        fuse([FIRST, SECOND], weights=weights)


def test_no_run_is_refused():
    with pytest.raises(VectorsError, match="at least one run"):
        fuse([])


def test_tuning_finds_the_run_that_is_right():
    good = {f"q{n}": [Hit("right", 2.0), Hit("a-wrong", 1.0)] for n in range(3)}
    bad = {f"q{n}": [Hit("a-wrong", 2.0), Hit("right", 1.0)] for n in range(3)}
    qrels = {f"q{n}": {"right": 1} for n in range(3)}
    tuned = tune_weights([bad, good], qrels, steps=4, measure="RR@10")
    # Every weight above one half is right (a tie goes to the smaller id): the most even is taken.
    assert tuned.weights == (0.25, 0.75)
    assert tuned.value == 1.0
    assert tuned.tried[(1.0, 0.0)] == 0.5
    assert len(tuned.tried) == 5


def test_tuning_without_steps_is_refused():
    with pytest.raises(VectorsError, match="at least 1 step, got 0"):
        tune_weights([FIRST], {"q": {"a": 1}}, steps=0)
