import json

import pytest

from dptdr.errors import DataError, VectorsError
from dptdr.records import Document, Passage
from dptdr.search.vectors.documents import (
    Filter,
    pack_documents,
    pack_ids,
    read_documents,
    unpack_document,
    unpack_ids,
)


def test_documents_come_back_from_their_lines():
    documents = [
        Document(Passage("a", "zwei\u2028Zeilen", "Titel")),
        Document(Passage("b", ""), {"lang": "de", "year": 1999}),
    ]
    text, offsets = pack_documents(documents)
    lines = [text[offsets[row] : offsets[row + 1]] for row in range(2)]
    assert [unpack_document(line) for line in lines] == documents


def test_ids_of_any_width_and_script_come_back():
    ids = ["1", "android:am", "日本 語", "x" * 90]
    packed = pack_ids(ids)
    assert packed.dtype == "S90"
    assert unpack_ids(packed) == ids


def test_an_id_that_the_array_cannot_keep_is_refused():
    with pytest.raises(VectorsError, match="without a trailing NUL"):
        pack_ids(["a\0"])


def test_metadata_is_read_where_there_is_some(tmp_path):
    lines = [
        {"_id": "a", "text": "one", "metadata": {"lang": "en"}},
        {"_id": "b", "title": "t", "text": 'says "metadata"'},
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert list(read_documents(tmp_path)) == [
        Document(Passage("a", "one"), {"lang": "en"}),
        Document(Passage("b", 'says "metadata"', "t")),
    ]


def test_metadata_that_is_no_object_names_line_and_field(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "t", "metadata": [1]}\n')
    with pytest.raises(DataError, match=r"line 1, field 'metadata': expected an object.*a list"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(
    ("text", "metadata", "kept"),
    [
        ("lang=en", {"lang": "en"}, True),
        ("lang=en,de", {"lang": "de"}, True),
        ("lang=en", {"lang": "de"}, False),
        ("lang=en", {}, False),
        ("year=1999", {"year": 1999}, True),
        ("open=true", {"open": True}, True),
        ("tags=b", {"tags": ["a", "b"]}, True),
        (r"city=Paris\, Texas,Rome", {"city": "Paris, Texas"}, True),
        (r"city=Paris\, Texas,Rome", {"city": "Rome"}, True),
        (r"city=Paris\, Texas,Rome", {"city": "Texas"}, False),
    ],
)
def test_a_filter_keeps_what_it_names(text, metadata, kept):
    assert Filter.parse(text).keeps(metadata) is kept


def test_a_filter_without_a_value_is_refused():
    with pytest.raises(VectorsError, match="expected a filter such as lang=en"):
        Filter.parse("lang")


@pytest.mark.parametrize("values", ["en", ["en"], ("en",)])
def test_a_text_as_filter_values_is_one_value(values):
    condition = Filter("lang", values)
    assert condition.keeps({"lang": "en"})
    assert not condition.keeps({"lang": "e"})
    assert {condition} == {Filter("lang", ("en",))}


def test_a_number_as_filter_value_is_refused():
    with pytest.raises(VectorsError, match=r"filter 'year': expected values as text, .* got 2024"):
        Filter("year", (2024,))


def test_an_id_that_would_make_the_table_of_ids_huge_is_refused():
    pack_ids(["a" * 1024])
    for too_long in ("a" * 1025, "ä" * 513):
        with pytest.raises(VectorsError, match="at most 1,024 bytes, got 1,02"):
            pack_ids([too_long])
    with pytest.raises(VectorsError, match="at most 1,024 bytes, got 200,000 bytes starting"):
        pack_ids(["b", "a" * 200_000])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "expected an object, got a list"),
        (
            b'{"_id": 1, "text": "", "title": ""}',
            "field '_id': expected a string, got the number 1",
        ),
        (b'{"_id": "1", "text": "", "title": "", "metadata": []}', "field 'metadata': expected"),
        (b'{"_id', "."),
    ],
)
def test_a_line_that_is_no_document_is_a_value_error(line, message):
    with pytest.raises(ValueError, match=message):
        unpack_document(line)
