import pytest

from dptdr.pretraining.pseudo import pseudo_queries
from dptdr.records import Passage

PASSAGES = [
    Passage(
        "a", "Bridges carry trains over a river. Slow trains wait at the old gate. No.", "River"
    ),
    Passage(
        "b", "Gardens bloom in a warm spring rain. Roses need water every day.", "On warm gardens"
    ),
    Passage("c", "Painters mix blue oil with white.", ""),
    Passage("d", "", ""),
    Passage("e", "River gardens and old trains; painters like blue roses there.", ""),
]


def drawn(count=20, rows=range(5), seed=0):
    return pseudo_queries(PASSAGES, count=count, rows=list(rows), seed=seed)


def test_a_title_or_sentence_is_taken_out_of_what_is_left():
    found = drawn()
    assert {query.kind for query in found} == {"title", "sentence", "phrase"}
    for query in found:
        if query.kind == "sentence":
            assert query.text in PASSAGES[query.row].text
            assert query.text not in query.rest
    (title,) = [query for query in found if query.kind == "title"]
    assert (title.text, title.rest) == ("On warm gardens", PASSAGES[1].text)


def test_key_phrases_are_words_of_the_passage_that_few_others_hold():
    few = [Passage(str(n), f"common word of all number{n % 7} topic{n % 7}") for n in range(70)]
    found = pseudo_queries(few, count=70, rows=list(range(70)), seed=0)
    assert len(found) == 70
    for query in found:
        number = int(few[query.row].id) % 7
        assert query.text == f"number{number} topic{number}"
        assert query.rest == few[query.row].content


def test_every_passage_gives_one_before_any_gives_two():
    able = {query.row for query in drawn()}
    first = drawn(count=len(able))
    assert {query.row for query in first} == able
    assert 3 not in able


@pytest.mark.parametrize("rows", [[0, 1], [4]])
def test_queries_are_a_function_of_seed_and_rows(rows):
    assert drawn(rows=rows) == drawn(rows=rows)
    assert {query.row for query in drawn(rows=rows)} <= set(rows)
