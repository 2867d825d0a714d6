"""Queries that are passages."""

import pytest

from dptdr.errors import DataError
from dptdr.io.identical import is_own_passage, own_passages, without_own
from dptdr.records import Hit, Passage, Query


@pytest.mark.parametrize(
    ("query", "passage", "own"),
    [
        (Query("a", "text"), Passage("a", "text"), True),
        (Query("a", "other words"), Passage("a", "text"), True),
        (Query("a", "text"), Passage("b", "text"), False),
        (Query("7", " TEXT  here"), Passage("7", "text here", "title"), True),
        (Query("7", "title text"), Passage("7", "text", "title"), True),
        # Two numberings from 1 meet by chance.
        (Query("7", "who"), Passage("7", "text"), False),
        (Query("fiqa:7", "who"), Passage("fiqa:7", "text"), False),
        (Query("quora:7", "text"), Passage("quora:7", "text"), True),
        (Query("quora:a", "who"), Passage("quora:a", "text"), True),
    ],
)
def test_a_query_is_the_passage_of_its_id_and_numbers_need_the_text(query, passage, own):
    assert is_own_passage(query, passage) is own
    assert own_passages([query], [Passage("z", "z"), passage]) == (
        {passage.id: passage.content} if own else {}
    )


def test_without_own_drops_the_query_itself_and_fills_the_depth():
    run = {"a": [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.0)], "b": [Hit("b", 2.0), Hit("a", 1.0)]}

    assert without_own(run, {"a"}, depth=2) == {
        "a": [Hit("b", 2.0), Hit("c", 1.0)],
        "b": [Hit("b", 2.0), Hit("a", 1.0)],
    }


def test_an_answer_with_the_id_of_its_question_is_refused():
    query, answer = Query("faq-1", "How?"), Passage("faq-1", "So.")

    with pytest.raises(DataError, match=r"query 'faq-1' has the id .*--keep-identical"):
        own_passages([query], [answer], qrels={"faq-1": {"faq-1": 1}})

    assert own_passages([query], [answer], qrels={"faq-1": {"faq-1": 0}}) == {"faq-1": "So."}
    copy = Passage("faq-1", "how?")
    assert own_passages([query], [copy], qrels={"faq-1": {"faq-1": 1}}) == {"faq-1": "how?"}
