import pytest

from dptdr.data.sample.wording import as_query, cut, is_signature


@pytest.mark.parametrize(
    ("paragraph", "query"),
    [
        ("Return the first\n    item of a list.", "Return the first item of a list."),
        ("Return a :class:`~numpy.ndarray` or ``None``.", "Return a numpy.ndarray or None."),
        ("Computes the following function::", "Computes the following function"),
        ("Sum all of them. >>> sum([1])", "Sum all of them."),
    ],
)
def test_a_summary_becomes_one_plain_line(paragraph: str, query: str):
    assert as_query(paragraph) == query


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short.",
        "word " * 41,
        "See the documentation of the other class.",
        "Alias for the other function here.",
        "Deprecated: use the other function.",
        "Draw %(kind)s of the thing.",
        "Applies {name} to the input.",
        "S.index(value) -> integer, return first index of value",
        "ascontiguousarray(a, dtype=None) --",
        "x + y = z ** 2 - 1 (3)",
        "Вернуть первый элемент списка",
        "----------- not a real summary",
    ],
)
def test_what_is_no_question_of_a_person_is_left_out(paragraph: str):
    assert as_query(paragraph) is None


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("abs(input, *, out=None) -> Tensor", True),
        ("ascontiguousarray(a,\n  dtype=None, like=(1, 2))\n--", True),
        ("Return the absolute value (of each element).", False),
        ("Return the absolute value", False),
    ],
)
def test_signatures_are_told_from_sentences(paragraph: str, expected: bool):
    assert is_signature(paragraph) is expected


def test_text_is_cut_at_the_end_of_a_line_or_word():
    assert cut("short", characters=10) == "short"
    assert cut("first line\nsecond line", characters=15) == "first line"
    assert cut("first second third", characters=15) == "first second"
    assert cut("x" * 30, characters=10) == "x" * 10
