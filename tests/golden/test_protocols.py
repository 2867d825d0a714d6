"""Golden values of the official protocols.

made_by: hand, from the published rules; each value is given beside its arithmetic.
"""

from pathlib import Path

import pytest

from dptdr.errors import DataError, EvaluationError
from dptdr.evaluation import read_qrels
from dptdr.evaluation.protocols.answers import contains_answer, prepare_answer, tokenize
from dptdr.evaluation.protocols.dpr import (
    Question,
    evaluate_nq,
    match_query_ids,
    prepare_questions,
    read_passage_texts,
    read_questions,
)
from dptdr.evaluation.protocols.msmarco import DEFINITIONS, evaluate_msmarco, read_ranks
from dptdr.records import Hit


def _file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


# --- MS MARCO


def _ranking(query: str, relevant: dict[int, str], *, depth: int) -> str:
    return "".join(
        f"{query}\t{relevant.get(rank, f'{query}{rank:04d}')}\t{rank}\n"
        for rank in range(1, depth + 1)
    )


def test_msmarco_measures_of_a_run_computed_by_hand(tmp_path):
    # 11: relevant 0 (a real id) at rank 3 and 7 at rank 60. 12: relevant at rank 11.
    # 13: relevant at rank 1000. 14: judged, not ranked.
    qrels = read_qrels(
        _file(
            tmp_path / "qrels", "11\t0\t0\t1\n11\t0\t7\t1\n12\t0\t5\t1\n13\t0\t6\t1\n14\t0\t8\t1\n"
        )
    )
    run = _file(
        tmp_path / "run.tsv",
        _ranking("11", {3: "0", 60: "7"}, depth=1000)
        + _ranking("12", {11: "5"}, depth=20)
        + _ranking("13", {1000: "6"}, depth=1000),
    )
    result = evaluate_msmarco(read_ranks(run), qrels)
    assert result.measures == {
        "MRR@10": pytest.approx((1 / 3 + 0 + 0 + 0) / 4),
        "hit_rate@50": pytest.approx(2 / 3),
        "hit_rate@1000": pytest.approx(3 / 3),
        "R@50": pytest.approx((1 / 2 + 1 + 0 + 0) / 4),
        "R@1000": pytest.approx((2 / 2 + 1 + 1 + 0) / 4),
    }
    assert set(result.measures) == set(DEFINITIONS)
    assert (result.queries, result.ranked, result.deepest_rank) == (4, 3, 1000)
    assert result.per_query["MRR@10"] == {"11": 1 / 3, "12": 0.0, "13": 0.0, "14": 0.0}
    assert result.per_query["hit_rate@50"] == {"11": 1.0, "12": 1.0, "13": 0.0}


def test_msmarco_counts_rank_10_and_not_rank_11(tmp_path):
    qrels = {"1": {"a": 1}, "2": {"b": 1}}
    run = _file(
        tmp_path / "run",
        _ranking("1", {10: "a"}, depth=12) + _ranking("2", {11: "b"}, depth=12),
    )
    assert evaluate_msmarco(read_ranks(run), qrels).measures["MRR@10"] == pytest.approx(0.1 / 2)


def test_msmarco_goes_by_rank_whatever_the_order_of_lines_also_in_trec_files(tmp_path):
    run = _file(tmp_path / "run", "1 Q0 b 2 0.5 t\n1 Q0 a 1 0.9 t\n1 Q0 c 3 0.1 t\n")
    assert read_ranks(run) == {"1": {2: "b", 1: "a", 3: "c"}}
    assert evaluate_msmarco(read_ranks(run), {"1": {"b": 1}}).measures["MRR@10"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1\ta\t1\n1\tb\t1\n",
            "line 2: query '1' has rank 1 twice, for 'a' and 'b'; number",
        ),
        (
            "1\ta\t1\n1\ta\t2\n",
            "line 2: query '1' ranks passage 'a' a second time; keep its best",
        ),
        ("1\ta\t0\n", "line 1, field 'rank': expected a rank from 1 to 1000, got 0"),
        ("1\ta\t1001\n", "line 1, field 'rank': expected a rank from 1 to 1000, got 1001"),
        ("1\ta\tfirst\n", "line 1, field 'rank': expected a whole number, got 'first'"),
        ("1\ta\n", r"line 1: expected 3 fields \(query-id, passage-id, rank\) or the 6"),
        ("\n", "expected a run, got an empty file"),
    ],
)
def test_msmarco_refuses_a_broken_run_file(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_ranks(_file(tmp_path / "run", text))


@pytest.mark.parametrize(
    ("ranks", "qrels", "message"),
    [
        ({"1": {1: "a", 3: "b"}}, {"1": {"a": 1}}, "query '1' has no passage at rank 2 but"),
        ({"1": {1: "a"}, "9": {1: "a"}}, {"1": {"a": 1}}, "1 of the run's 2 queries are not in"),
        ({"1": {1: "a"}}, {"1": {"a": 0}}, "passage 'a': expected a grade of at least 1, got 0"),
        ({}, {"1": {"a": 1}}, "but the run is empty"),
        ({"1": {1: "a"}}, {}, "but the qrels are empty"),
    ],
)
def test_msmarco_refuses_run_and_qrels_that_do_not_fit(ranks, qrels, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate_msmarco(ranks, qrels)


# --- Natural Questions, DPR's rules


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("U.S. GDP: $3,000.50", ["u", ".", "s", ".", "gdp", ":", "$", "3", ",", "000", ".", "50"]),
        ("Beyoncé’s naïve", ["beyonce\u0301", "’", "s", "nai\u0308ve"]),
        ("東京 2020年", ["東京", "2020年"]),
        ("a\u00a0b\u200bc\td", ["a", "b", "c", "d"]),
        ("ΟΔΟΣ", ["οδος"]),
        ("", []),
    ],
)
def test_tokens_by_hand(text, tokens):
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("text", "answer", "contained"),
    [
        ("The capital is Paris, France.", "paris france", False),
        ("The capital is Paris, France.", "Paris, FRANCE", True),
        ("The capital is Paris, France.", "Paris ,France", True),
        ("Parisian life", "Paris", False),
        ("in 1,914 it began", "914", True),
        ("in 1914 it began", "914", False),
        ("Beyonce\u0301 sang", "Beyonc\u00e9", True),
        ("Beyonce sang", "Beyonc\u00e9", False),
        ("the end", "the end", True),
        ("the end", "the end.", False),
        ("a b a b c", "a b c", True),
        # Lower-casing a capital word ends it in ς; an answer typed with σ at its end differs.
        ("ΣΟΦΟΣ", "σοφοσ", False),
        ("ΣΟΦΟΣ", "Σοφος", True),
        ("ends in Σ.Α", "Σ.Α", True),
        ("year\u200b2000", "year 2000", True),
        ("", "x", False),
    ],
)
def test_string_answers_by_hand(text, answer, contained):
    assert contains_answer(text, [prepare_answer(answer, matching="string")[0]]) is contained


@pytest.mark.parametrize(
    ("text", "answer", "contained"),
    [
        ("It cost 12 million", r"\d+ (million|billion)", True),
        ("It cost TWELVE", "twelve|dozen", True),
        ("first\nMontréal\nlast", "^montréal$", True),
        ("nothing", r"no\s", False),
    ],
)
def test_regular_expressions_by_hand(text, answer, contained):
    assert contains_answer(text, [prepare_answer(answer, matching="regex")[0]]) is contained


QA = (
    'who wrote it\t["Jane Austen", "Austen"]\n'
    "when was it\t['1815']\n"
    '"say ""hi"" to whom"\t[\'the "king"\']\n'
    'never ranked\t["x"]\n'
)
PASSAGES = (
    "id\ttext\ttitle\n"
    '1\t"Jane said ""no"" to all"\tJane Austen\n'
    "2\tby Miss AUSTEN herself\tEmma\n"
    "3\tin 1815 or 1816\tEmma\n"
    '0\t"the ""king"" came"\tHi\n'
)
RUN = {
    "0": [*(Hit(f"x{rank}", -rank) for rank in range(5)), Hit("2", -5.0), Hit("1", -6.0)],
    "1": [Hit("2", 2.0), Hit("3", 1.0)],
    "2": [*(Hit(f"x{rank}", -rank) for rank in range(20)), Hit("0", -20.0)],
}


def _nq(tmp_path, *, run, passages=PASSAGES, workers=1):
    qa = _file(tmp_path / "qa.csv", QA)
    filler = "".join(f"x{rank}\tnothing\tJane Austen\n" for rank in range(20))
    answers, faults = prepare_questions(read_questions(qa), matching="string")
    assert faults == []
    return evaluate_nq(
        run,
        answers,
        query_ids=["0", "1", "2", "3"],
        passages=read_passage_texts(_file(tmp_path / "psgs.tsv", passages + filler)),
        workers=workers,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_nq_accuracy_of_a_run_computed_by_hand(tmp_path, workers):
    # Question 0: rank 6 (a title alone does not count). 1: rank 2. 2: rank 21. 3: not ranked.
    result = _nq(tmp_path, run=RUN, workers=workers)
    assert result.measures == {"top-5": 1 / 4, "top-20": 2 / 4, "top-100": 3 / 4}
    assert result.per_query["top-20"] == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 0.0}
    assert (result.queries, result.unanswered, result.passages_matched) == (4, 1, 24)


def test_nq_looks_at_a_hundred_passages_and_no_more(tmp_path):
    filler = [Hit(f"f{rank}", -float(rank)) for rank in range(100)]
    passages = PASSAGES + "".join(f"f{rank}\tnothing\t\n" for rank in range(100))
    late = {"1": [*filler, Hit("3", -100.0)]}
    last = {"1": [*filler[:99], Hit("3", -100.0)]}
    assert _nq(tmp_path, run=late, passages=passages).measures["top-100"] == 0
    assert _nq(tmp_path, run=last, passages=passages).measures["top-100"] == 1 / 4


def test_nq_reads_the_texts_of_a_beir_corpus_too(tmp_path):
    path = _file(tmp_path / "corpus.jsonl", '{"_id": "3", "title": "1815", "text": "in 1816"}\n')
    assert list(read_passage_texts(path)) == [("3", "in 1816")]


def test_nq_finds_query_ids_by_text_and_prefers_those_of_the_run(tmp_path):
    path = _file(
        tmp_path / "queries.jsonl",
        "".join(
            f'{{"_id": "{key}", "text": "{text}"}}\n'
            for key, text in [("train-0", "who"), ("test-1", "where"), ("test-0", "who ")]
        ),
    )
    questions = [Question("who", ("a",)), Question("where", ("b",)), Question("who", ("a",))]
    ids = match_query_ids(questions, queries=path, ranked={"test-0", "test-1"})
    assert ids == ["test-0", "test-1", "train-0"]
    with pytest.raises(DataError, match="no query has the text of question 'when'"):
        match_query_ids([Question("when", ("c",))], queries=path, ranked=())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"7": [Hit("1", 1.0)]}, "1 of the run's 1 queries are not questions, such as '7'"),
        ({"0": [Hit("nine", 1.0)]}, r"1 of the run's 1 passages are not in the passage file"),
        ({"0": [Hit("1", 1.0), Hit("1", 0.5)]}, "query '0' lists a passage twice; list it once"),
        ({"0": []}, "expected passages for at least one question"),
    ],
)
def test_nq_refuses_a_run_that_does_not_fit(tmp_path, run, message):
    with pytest.raises(EvaluationError, match=message):
        _nq(tmp_path, run=run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\t['a']\nq only\n", "line 2: expected question and answers .* got 1 fields"),
        ("q\t'a'\n", "line 1, field 'answers': expected a list of answers"),
        ("q\t[1]\n", "line 1, field 'answers': expected a list of answers"),
        ("q\t[open(\n", "line 1, field 'answers': expected a list of answers"),
        ("", "expected questions, got an empty file"),
    ],
)
def test_nq_refuses_a_broken_question_file(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_questions(_file(tmp_path / "qa.csv", text))


@pytest.mark.parametrize(
    ("matching", "answers", "message", "counts"),
    [
        # made_by: DPR's has_answer: an empty list of tokens is part of every text, a pattern that
        # does not compile is caught and matches nothing.
        ("string", "[' ']", "the answer has no letter, digit or sign", True),
        ("regex", "['(']", "not a regular expression", False),
        ("regex", "['']", "the expression is empty", True),
        ("string", "[]", "the list of answers is empty", False),
    ],
)
def test_nq_scores_faulty_answers_as_dpr_does(tmp_path, matching, answers, message, counts):
    path = _file(tmp_path / "qa.csv", f"q\t{answers}\n")
    (prepared,), faults = prepare_questions(read_questions(path), matching=matching)
    assert len(faults) == 1
    assert faults[0].startswith(f"question 1 (q): {message}")
    assert contains_answer("any text", prepared) is counts


def test_nq_passages_lose_quotation_marks_at_their_ends(tmp_path):
    path = _file(tmp_path / "p.tsv", 'id\ttext\ttitle\n1\t"""said ""no"" twice"""\tt\n')
    assert list(read_passage_texts(path)) == [("1", 'said "no" twice')]


def test_nq_refuses_passages_cut_short(tmp_path):
    with pytest.raises(DataError, match=r"line 2: expected id, text and title .* got 2 fields"):
        list(read_passage_texts(_file(tmp_path / "psgs.tsv", "id\ttext\ttitle\n1\tcut\n")))
