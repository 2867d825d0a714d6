"""Laws of runs, measures and tests that hold for any input."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dptdr.evaluation import evaluate, holm, paired_test, read_run, write_run
from dptdr.evaluation.protocols.answers import prepare_answer, tokenize
from dptdr.evaluation.protocols.dpr import evaluate_nq
from dptdr.evaluation.protocols.msmarco import evaluate_msmarco
from dptdr.evaluation.significance import randomisation_p
from dptdr.records import Hit

ids = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="\ufeff"),
    min_size=1,
    max_size=6,
).filter(lambda text: text.split() == [text])


@st.composite
def rankings(draw, *, scores=None):
    """One ranking: unique passages, falling single-precision scores."""
    passages = draw(st.lists(ids, unique=True, max_size=12))
    numbers = draw(
        st.lists(
            st.floats(-1e6, 1e6, width=32) if scores is None else scores,
            min_size=len(passages),
            max_size=len(passages),
            unique=scores is None,
        )
    )
    ordered = sorted(numbers, reverse=True)
    return [Hit(passage, score) for passage, score in zip(passages, ordered, strict=True)]


runs = st.dictionaries(ids, rankings().filter(len), min_size=1, max_size=5)
tied_runs = st.dictionaries(
    ids,
    rankings(scores=st.sampled_from([0.0, -0.0, 1.0, 1 / 3, -2.5])).filter(len),
    min_size=1,
    max_size=5,
)


@given(run=runs)
def test_a_run_with_distinct_scores_reads_back_as_written(run):
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run", run, tag="t")
        assert read_run(Path(folder) / "run") == run


@given(run=tied_runs)
def test_a_run_with_ties_reads_back_in_the_same_order_and_is_evaluated_alike_by_trec_eval(run):
    import ir_measures

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        write_run(path, run, tag="t")
        read = read_run(path)
        theirs = list(ir_measures.read_trec_run(str(path)))
    order = {query: [hit.passage_id for hit in hits] for query, hits in run.items()}
    assert {query: [hit.passage_id for hit in hits] for query, hits in read.items()} == order
    qrels = {query: {passages[len(passages) // 2]: 1} for query, passages in order.items()}
    ours = evaluate(run, qrels, measures=["RR@10", "nDCG@10"])
    reference = ir_measures.calc_aggregate(
        [ir_measures.RR @ 10, ir_measures.nDCG @ 10], qrels, theirs
    )
    for measure, value in reference.items():
        assert ours.measures[str(measure)] == pytest.approx(value)


@given(run=runs, data=st.data())
def test_a_query_dropped_from_the_run_counts_zero_and_changes_no_other(run, data):
    qrels = {query: {hits[-1].passage_id: 1} for query, hits in run.items()}
    qrels["always"] = {"p": 1}
    run = {**run, "always": [Hit("p", 1.0)]}
    gone = data.draw(st.sampled_from([query for query in qrels if query != "always"]))
    whole = evaluate(run, qrels)
    without = evaluate({query: hits for query, hits in run.items() if query != gone}, qrels)
    for name, values in whole.per_query.items():
        expected = {**values, gone: 0.0}
        assert without.per_query[name] == expected
        assert without.measures[name] == pytest.approx(sum(expected.values()) / len(qrels))


values = st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]), min_size=2, max_size=40)


@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
@example(pairs=[(0.0, 0.0), (0.0, 5e-324)])
@settings(max_examples=40)
def test_swapping_the_systems_turns_the_sign_and_keeps_the_p_values(pairs):
    a = {str(index): pair[0] for index, pair in enumerate(pairs)}
    b = {str(index): pair[1] for index, pair in enumerate(pairs)}
    one, other = paired_test(a, b, permutations=500), paired_test(b, a, permutations=500)
    assert one.mean_difference == -other.mean_difference
    assert one.p_randomisation == other.p_randomisation
    assert one.p_t == pytest.approx(other.p_t)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert 0 < one.p_randomisation <= 1


@given(differences=values, seed=st.integers(0, 9))
@settings(max_examples=40)
def test_drawn_patterns_agree_with_all_patterns(differences, seed):
    moving = np.array(differences[:12]) - 0.3
    exact = randomisation_p(moving, permutations=4096, seed=seed)
    drawn = randomisation_p(moving, permutations=min(4000, 2**moving.size - 1), seed=seed)
    # Three to four standard errors of a share estimated from so many draws.
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / (min(4000, 2**moving.size - 1) ** 0.5))


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values):
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)


@given(run=runs, data=st.data())
def test_msmarco_protocol_agrees_with_ir_measures_where_both_define_the_same(run, data):
    import ir_measures

    qrels = {
        query: {
            passage: 1
            for passage in data.draw(
                st.lists(st.sampled_from([h.passage_id for h in hits] + ["other"]), min_size=1)
            )
        }
        for query, hits in run.items()
    }
    qrels["unranked"] = {"p": 1}
    run.pop("unranked", None)
    ranks = {
        query: {row + 1: hit.passage_id for row, hit in enumerate(hits)}
        for query, hits in run.items()
    }
    result = evaluate_msmarco(ranks, qrels)
    reference = evaluate(run, qrels, measures=["RR@10", "R@50", "R@1000", "Success@50"])
    assert result.measures["MRR@10"] == pytest.approx(reference.measures["RR@10"])
    assert result.measures["R@1000"] == pytest.approx(reference.measures["R@1000"])
    # The hit rate is over ranked queries: Success over the judged ones, times judged / ranked.
    share = reference.measures["Success@50"] * len(qrels) / len(run)
    assert result.measures["hit_rate@50"] == pytest.approx(share)
    theirs = ir_measures.calc_aggregate(
        [ir_measures.RR @ 10],
        qrels,
        {
            query: {hit.passage_id: -row for row, hit in enumerate(hits)}
            for query, hits in run.items()
        },
    )
    assert result.measures["MRR@10"] == pytest.approx(theirs[ir_measures.RR @ 10])


words = st.lists(st.sampled_from(["a", "B", "É", "ΣΑΣ", "9", ".", "-", "of the"]), max_size=8)


@given(texts=st.lists(words, min_size=1, max_size=8), answer=words.filter(bool))
def test_answer_accuracy_agrees_with_success_over_passages_that_contain_an_answer(texts, answer):
    passages = [(f"p{row}", " ".join(text)) for row, text in enumerate(texts)]
    prepared = [prepare_answer(" ".join(answer), matching="string")[0]]
    run = {"q": [Hit(key, float(-row)) for row, (key, _) in enumerate(passages)]}
    result = evaluate_nq(run, [prepared], query_ids=["q"], passages=iter(passages))
    needle = tokenize(" ".join(answer))
    grades = {
        key: int(any(tokens[at : at + len(needle)] == needle for at in range(len(tokens))))
        for key, text in passages
        for tokens in [tokenize(text)]
    }
    reference = evaluate(run, {"q": grades}, measures=["Success@5", "Success@20"])
    assert result.measures["top-5"] == reference.measures["Success@5"]
    assert result.measures["top-20"] == reference.measures["Success@20"]
