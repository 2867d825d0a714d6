import json
from pathlib import Path
from typing import Any

import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.training_files import GroupFile
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Query


def passage(docid: Any, text: str, title: str = "") -> dict[str, Any]:
    return {"docid": docid, "title": title, "text": text}


TRAIN = [
    {
        "query_id": "10",
        "query": "what is zero",
        "positive_passages": [passage("0", "Zero\u2028text\ttab.", "Zero")],
        "negative_passages": [passage("4", "Four."), passage(5, "Five.")],
    },
    {
        "query_id": 11,
        "query": "what is four",
        "positive_passages": [passage("4", "Four.")],
        "negative_passages": [],
    },
]


def write(path: Path, *records: object, ending: str = "\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + ending for record in records)
    path.write_bytes(text.encode())
    return path


def test_a_training_file_alone_gives_corpus_queries_judgements_and_negatives(tmp_path: Path):
    done = convert(
        str(write(tmp_path / "train.jsonl", *TRAIN, ending="\r\n")),
        format="tevatron",
        out=tmp_path / "out",
    )

    folder = BeirFolder(tmp_path / "out")
    assert list(folder.passages()) == [
        Passage("0", "Zero\u2028text\ttab.", "Zero"),
        Passage("4", "Four."),
        Passage("5", "Five."),
    ]
    assert list(folder.queries()) == [Query("10", "what is zero"), Query("11", "what is four")]
    assert folder.qrels("train") == {"10": {"0": 1}, "11": {"4": 1}}
    assert done.titled == 1
    (group,) = GroupFile(folder.path / "negatives-train.jsonl", folder=folder)
    assert group.negative_ids == ("4", "5")
    assert group.negatives == ("Four.", "Five.")


def test_a_folder_with_a_corpus_and_queries_without_passages_is_read(tmp_path: Path):
    source = tmp_path / "s"
    write(source / "corpus.jsonl", passage("0", "Zero."), passage("4", "Four."), passage("8", "8."))
    write(source / "dev.jsonl", TRAIN[1])
    write(source / "test.jsonl", {"query_id": "12", "query": "no answer known"})

    convert(str(source), format="tevatron", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert [item.id for item in folder.passages()] == ["0", "4", "8"]
    assert [item.id for item in folder.queries()] == ["11", "12"]
    assert folder.splits() == ["dev"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"query": "x"}, "train.jsonl, line 3, field 'query_id': expected a string, got null"),
        ({"query_id": "1"}, "line 3, field 'query': expected a string, got null"),
        ({"query_id": "10", "query": "x"}, "line 3: duplicate query id '10'; delete one"),
        (
            {"query_id": "1", "query": "x", "positive_passages": [{"docid": "1"}]},
            "line 3, field 'text': expected a string, got null",
        ),
        (
            {"query_id": "1", "query": "x", "positive_passages": ["x"]},
            "line 3: expected a passage object, got the text 'x'",
        ),
        (
            {"query_id": "1", "query": "x", "positive_passages": {}, "negative_passages": 3},
            "line 3, field 'negative_passages': expected a list, got the number 3",
        ),
    ],
)
def test_a_broken_record_is_named_and_nothing_is_written(
    tmp_path: Path, record: dict[str, Any], expected: str
):
    path = write(tmp_path / "train.jsonl", *TRAIN, record)

    with pytest.raises(DataError) as error:
        convert(str(path), format="tevatron", out=tmp_path / "out")

    assert expected in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_corpus_with_an_id_twice_and_a_missing_file_are_refused(tmp_path: Path):
    write(tmp_path / "s" / "corpus.jsonl", passage("8", "a"), passage("8", "b"))
    write(tmp_path / "s" / "train.jsonl", TRAIN[0])

    with pytest.raises(
        DataError, match=r"corpus.jsonl, line 2: duplicate passage id '8'; delete one"
    ):
        convert(str(tmp_path / "s"), format="tevatron", out=tmp_path / "out")
    with pytest.raises(DataError, match=r"expected a Tevatron \.jsonl file"):
        convert(str(tmp_path / "gone.jsonl"), format="tevatron", out=tmp_path / "out")


@pytest.mark.parametrize("titled", [False, True])
def test_a_passage_with_two_texts_is_refused_where_it_comes_again(tmp_path, titled):
    again = passage("0", "a") | ({"title": "other"} if titled else {"text": "b"})
    records = [
        {"query_id": f"q{n}", "query": f"q {n}", "positive_passages": [p], "negative_passages": []}
        for n, p in enumerate([passage("0", "a"), passage("0", "a"), again])
    ]
    write(tmp_path / "train.jsonl", *records)
    words = r"train.jsonl, line 3: passage '0' has another text before"
    with pytest.raises(DataError, match=words):
        convert(str(tmp_path / "train.jsonl"), format="tevatron", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": ["a"]}, "field 'title': expected a string, got a list"),
        ({"document_text": "other"}, "expected either 'text' or 'document_text', got both"),
    ],
)
def test_a_passage_that_says_two_things_is_refused(tmp_path, change, words):
    record = {"query_id": "q", "query": "q", "positive_passages": [passage("0", "a") | change]}
    write(tmp_path / "train.jsonl", record)
    with pytest.raises(DataError, match=words):
        convert(str(tmp_path / "train.jsonl"), format="tevatron", out=tmp_path / "out")


PRESENT = {
    "query_id": "10",
    "query_text": "what is zero",
    "positive_document_ids": ["0"],
    "negative_document_ids": [4],
}


def test_the_present_format_names_passages_of_a_corpus(tmp_path: Path):
    source = tmp_path / "source"
    write(source / "train.jsonl", PRESENT)
    documents = [{"docid": "0", "document_text": "Zero."}, {"docid": 4, "document_text": "Four."}]
    write(source / "corpus.jsonl", *documents)

    done = convert(str(source), out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert "tevatron" in done.read_as
    assert list(folder.passages()) == [Passage("0", "Zero."), Passage("4", "Four.")]
    assert folder.qrels("train") == {"10": {"0": 1}}
    for path in (folder.path / "negatives-train.jsonl", source / "train.jsonl"):
        (group,) = GroupFile(path, folder=folder)
        assert (group.query, group.positives) == ("what is zero", ("Zero.",))
        assert (group.negative_ids, group.negatives) == (("4",), ("Four.",))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            PRESENT,
            "line 1, field 'positive_document_ids': refers to passages by id; expected corpus",
        ),
        (PRESENT | {"positive_document_ids": "0"}, "line 1, field 'positive_document_ids'"),
    ],
)
def test_the_present_format_alone_or_broken_is_refused(tmp_path: Path, record, message):
    with pytest.raises(DataError, match=message):
        convert(str(write(tmp_path / "train.jsonl", record)), out=tmp_path / "out")


def test_a_negative_that_is_a_positive_is_dropped_and_counted(tmp_path: Path):
    source = tmp_path / "source"
    both = {"positive_document_ids": ["0", "4"], "negative_document_ids": [4, 5]}
    write(source / "train.jsonl", PRESENT | both, PRESENT | both | {"query_id": "11"})
    write(source / "corpus.jsonl", passage("0", "Zero."), passage("4", "4"), passage("5", "5"))

    done = convert(str(source), out=tmp_path / "out")

    assert done.dropped == {"negatives that are a positive": 2}
    lines = (tmp_path / "out" / "negatives-train.jsonl").read_text().splitlines()
    assert [[n["id"] for n in json.loads(line)["negatives"]] for line in lines] == [["5"], ["5"]]
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["dropped"] == done.dropped


@pytest.mark.parametrize("change", [{"text": "Other."}, {"title": "Other"}])
def test_a_text_in_a_group_that_contradicts_the_corpus_is_refused(tmp_path: Path, change):
    source = tmp_path / "source"
    write(source / "train.jsonl", TRAIN[1], TRAIN[0])
    corpus = [
        passage("0", "Zero\u2028text\ttab.", "Zero"),
        passage("4", "Four."),
        passage("5", "Five."),
    ]
    write(source / "corpus.jsonl", *corpus)
    convert(str(source), format="tevatron", out=tmp_path / "out")
    # A group without titles says nothing else.
    write(source / "corpus.jsonl", *corpus[:2], corpus[2] | {"title": "Five"})
    convert(str(source), format="tevatron", out=tmp_path / "out")

    write(source / "corpus.jsonl", *corpus[1:], corpus[0] | change)
    words = r"corpus.jsonl, line 3: passage '0' has another text in .*train.jsonl, line 2; correct"
    with pytest.raises(DataError, match=words):
        convert(str(source), format="tevatron", out=tmp_path / "out")
