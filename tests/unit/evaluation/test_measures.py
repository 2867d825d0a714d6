"""Measures: values by hand, and who counts."""

from math import log2

import pytest

from dptdr.errors import EvaluationError
from dptdr.evaluation import evaluate
from dptdr.evaluation.measures import parse_measures
from dptdr.records import Hit

QRELS = {"q1": {"a": 2, "b": 1, "x": 0}, "q2": {"c": 1}, "q3": {"d": 1}, "q4": {"e": 0}}
RUN = {
    "q1": [Hit("x", 3.0), Hit("b", 2.0), Hit("a", 1.0)],
    "q2": [Hit("c", 0.1)],
    "q4": [Hit("e", 5.0)],
    "unjudged": [Hit("a", 1.0)],
}


def test_evaluate_gives_the_values_computed_by_hand():
    result = evaluate(RUN, QRELS, measures=["nDCG@10", "RR@10", "R@1"])
    gain = 1 / log2(3) + 2 / log2(4)
    ideal = 2 / log2(2) + 1 / log2(3)
    assert result.per_query["nDCG@10"]["q1"] == pytest.approx(gain / ideal)
    assert result.per_query["RR@10"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0, "q4": 0.0}
    assert result.per_query["R@1"] == {"q1": 0.0, "q2": 1.0, "q3": 0.0, "q4": 0.0}


def test_evaluate_counts_missing_queries_and_those_without_positive_as_zero():
    result = evaluate(RUN, QRELS)
    assert result.queries == 4
    assert result.unanswered == 1
    assert result.measures["RR@10"] == pytest.approx((0.5 + 1.0) / 4)
    assert list(result.measures) == ["nDCG@10", "RR@10", "R@100"]


def test_evaluate_goes_by_the_order_of_the_run_where_scores_are_equal():
    qrels = {"q": {"a": 1}}
    first = evaluate({"q": [Hit("a", 1.0), Hit("z", 1.0)]}, qrels)
    second = evaluate({"q": [Hit("z", 1.0), Hit("a", 1.0)]}, qrels)
    assert (first.measures["RR@10"], second.measures["RR@10"]) == (1.0, 0.5)


def test_evaluate_names_all_unknown_measures():
    with pytest.raises(
        EvaluationError, match=r"compute 'nDGC@10' \(.*'nDCG@' \(.*'R' \("
    ) as caught:
        evaluate(RUN, QRELS, measures=["nDGC@10", "RR@10", "nDCG@", "R", "RBP(p=0.8)"])
    assert "'RBP(p=0.8)' (Unsupported measures {RBP})" in str(caught.value)


def test_evaluate_fills_the_columns_of_two_names_of_one_measure():
    result = evaluate(RUN, QRELS, measures=["RR@10", "MRR@10", "RR@10"])
    assert result.measures == {"RR@10": 0.375, "MRR@10": 0.375}
    assert result.per_query["MRR@10"] == result.per_query["RR@10"]


@pytest.mark.parametrize("grade", [1_000_001, 2**40, -(2**31)])
def test_evaluate_refuses_grades_that_trec_eval_cannot_hold(grade):
    with pytest.raises(EvaluationError, match=f"expected a grade from .* got {grade}"):
        evaluate(RUN, {"q1": {"a": grade}})


@pytest.mark.parametrize(
    ("run", "qrels", "message"),
    [
        (
            {"z": [Hit("a", 1.0)]},
            QRELS,
            "none of the 4 judged queries is among the 1 queries of the run",
        ),
        (RUN, {}, "got empty qrels"),
        ({"q1": [Hit("a", 1.0), Hit("a", 0.5)]}, QRELS, "expected distinct passages, got 2 hits"),
    ],
)
def test_evaluate_refuses_run_and_qrels_that_do_not_fit(run, qrels, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(run, qrels)


@pytest.mark.parametrize("name", ["nDCG@0", "P@0", "Judged@0", "R@99999999999999999999", "ERR@0"])
def test_measures_that_crash_the_programs_behind_them_are_refused(name):
    with pytest.raises(EvaluationError, match=rf"'{name}' \(expected a cutoff of 1 to"):
        parse_measures([name])


def test_evaluate_without_measures_is_refused():
    with pytest.raises(EvaluationError, match="expected at least one measure"):
        evaluate(RUN, QRELS, measures=[])


def test_counts_are_summed_over_queries():
    run = {"a": [Hit("p", 2.0), Hit("r", 1.0)], "b": [Hit("p", 1.0)]}

    found = evaluate(run, {"a": {"p": 1}, "b": {"p": 1, "x": 1}}, measures=["NumRet", "P@1"])

    assert found.measures == {"NumRet": 3.0, "P@1": 1.0}
