import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from dptdr.data.training_files import GroupFile, read_groups
from dptdr.data.training_records import count_dropped
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query, TrainingGroup

TEVATRON = {
    "query_id": "17",
    "query": "what is it",
    "positive_passages": [{"docid": "0", "title": "The title", "text": "It is\u2028this."}],
    "negative_passages": [
        {"docid": "5", "title": "", "text": "Something else."},
        {"docid": "6", "title": "Other", "text": "And this."},
    ],
}
DPR = {
    "dataset": "nq_train_psgs_w100",
    "question": "who did it",
    "answers": ["Nobody"],
    "positive_ctxs": [
        {"title": "T", "text": "It was nobody.", "score": 1000, "title_score": 1, "passage_id": "3"}
    ],
    "negative_ctxs": [{"title": "N", "text": "Easy.", "score": 0, "passage_id": "8"}],
    "hard_negative_ctxs": [{"title": "H", "text": "Hard.", "score": 9.5, "passage_id": "9"}],
}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> BeirFolder:
    write_beir(
        tmp_path / "data",
        passages=[Passage("0", "zero", "Title"), Passage("1", "one"), Passage("2", "two")],
        queries=[Query("q", "the query")],
        qrels={},
        meta={},
    )
    return BeirFolder(tmp_path / "data")


def both(path: Path, folder: BeirFolder | None = None) -> list[TrainingGroup]:
    """Read by row and as a stream; the two must agree."""
    by_row = list(GroupFile(path, folder=folder))
    assert list(read_groups(path, folder=folder)) == by_row
    return by_row


def test_tevatron_lines_are_read_as_they_are(tmp_path: Path):
    path = write_lines(tmp_path / "train.jsonl", TEVATRON, {**TEVATRON, "query_id": 18})

    first, second = both(path)

    assert GroupFile(path).format == "tevatron"
    assert first == TrainingGroup(
        query_id="17",
        query="what is it",
        positives=("The title It is\u2028this.",),
        negatives=("Something else.", "Other And this."),
        positive_ids=("0",),
        negative_ids=("5", "6"),
    )
    assert second.query_id == "18"


@pytest.mark.parametrize("indent", [None, 4])
def test_a_dpr_array_is_read_as_it_is_with_hard_negatives_first_choice(
    tmp_path: Path, indent: int | None
):
    easy = {**DPR, "question": "a second one", "hard_negative_ctxs": []}
    path = tmp_path / "biencoder.json"
    path.write_text(json.dumps([DPR, easy], indent=indent))

    first, second = both(path)

    assert GroupFile(path).format == "dpr"
    assert first == TrainingGroup(
        query_id="0",
        query="who did it",
        positives=("T It was nobody.",),
        negatives=("H Hard.",),
        positive_ids=("3",),
        negative_ids=("9",),
    )
    assert second.query_id == "1"
    assert second.negatives == ("N Easy.",)
    assert second.negative_ids == ("8",)


def test_dpr_lines_with_the_other_name_of_the_id_are_read(tmp_path: Path):
    context = {"title": "T", "text": "x", "psg_id": 4}
    path = write_lines(tmp_path / "t.jsonl", {"question": "w", "positive_ctxs": [context]})

    assert both(path)[0].positive_ids == ("4",)


def test_groups_of_texts_need_no_folder(tmp_path: Path):
    path = write_lines(
        tmp_path / "g.jsonl",
        {"query": "a", "positives": ["p", "p2"], "negatives": ["n"]},
        {
            "query_id": "x",
            "query": "b",
            "positives": [{"text": "p", "title": "T", "id": "7", "score": 2}],
            "negatives": [
                {"text": "n", "id": "8", "score": -0.5},
                {"text": "m", "id": "9", "score": 0},
            ],
        },
        {"query": "c", "positives": ["p"]},
    )

    assert GroupFile(path).format == "groups"
    assert both(path) == [
        TrainingGroup("0", "a", ("p", "p2"), ("n",)),
        TrainingGroup("x", "b", ("T p",), ("n", "m"), ("7",), ("8", "9"), (2.0,), (-0.5, 0.0)),
        TrainingGroup("2", "c", ("p",)),
    ]


def test_strings_are_ids_if_the_folder_holds_those_of_the_first_record(
    tmp_path: Path, folder: BeirFolder
):
    path = write_lines(
        tmp_path / "g.jsonl",
        {"query": "a", "positives": ["0"], "negatives": ["1", "2"]},
        {"query": "b", "positives": [{"id": "1", "score": 1.5}], "negatives": [{"text": "own"}]},
    )

    assert both(path, folder) == [
        TrainingGroup("0", "a", ("Title zero",), ("one", "two"), ("0",), ("1", "2")),
        TrainingGroup("1", "b", ("one",), ("own",), ("1",), (), (1.5,), ()),
    ]


def test_strings_stay_texts_if_the_folder_does_not_hold_them(tmp_path: Path, folder: BeirFolder):
    path = write_lines(tmp_path / "g.jsonl", {"query": "a", "positives": ["0 is a text"]})

    assert both(path, folder)[0].positives == ("0 is a text",)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"positives": ["gone"], "negatives": ["1"]}], "line 1, .*'gone' is not in the data"),
        ([{"positives": ["a text"]}, {"positives": ["1"]}], "line 2, .* the passage id '1'"),
        ([{"positives": [{"text": "x"}]}, {"positives": ["1"]}], "line 2, .* an object with"),
    ],
)
def test_ids_are_never_taken_for_texts(tmp_path: Path, folder: BeirFolder, records, message):
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps({"query": "q", **record}) + "\n" for record in records))

    with pytest.raises(DataError, match=message):
        list(read_groups(path, folder=folder))


def test_mined_negatives_take_their_texts_from_the_folder(tmp_path: Path, folder: BeirFolder):
    mined = {
        "query_id": "q",
        "positives": ["0"],
        "positive_teacher": [0.75],
        "negatives": [
            {"id": "2", "sources": {"bm25": {"rank": 3, "score": 17.2}}, "teacher": 0.25},
            {"id": "1", "sources": {}, "teacher": -1},
        ],
    }
    path = write_lines(tmp_path / "negatives.jsonl", mined)

    assert GroupFile(path, folder=folder).format == "mined"
    assert both(path, folder) == [
        TrainingGroup(
            query_id="q",
            query="the query",
            positives=("Title zero",),
            negatives=("two", "one"),
            positive_ids=("0",),
            negative_ids=("2", "1"),
            positive_scores=(0.75,),
            negative_scores=(0.25, -1.0),
        )
    ]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"query": "b", "positives": []}, "field 'positives': expected at least one positive, got"),
        ({"query": "b"}, "field 'positives': expected at least one positive, got none"),
        ({"query": 5, "positives": ["x"]}, "field 'query': expected a string, got the number 5"),
        ({"positives": ["x"]}, "field 'query': expected a string, got null"),
        ({"query": "b", "positives": "x"}, "field 'positives': expected a list, got the text 'x'"),
        (
            {"query": "b", "positives": [3]},
            "field 'positives': expected texts, ids or objects, got",
        ),
        (
            {"query": "b", "positives": [{"title": "x"}]},
            "field 'positives': expected an object with 'text' or 'id', got neither",
        ),
        (
            {"query": "b", "positives": [{"id": "9"}]},
            "refers to texts by id; specify the data folder that contains them",
        ),
        (
            {"query": "b", "positives": [{"text": "x", "score": 1}, {"text": "y"}]},
            "expected scores of positives for all or for none, got 1 of 2",
        ),
        (
            {"query": "b", "positives": [{"text": "x", "score": "high"}]},
            "field 'positives': expected a numeric score, got the text 'high'",
        ),
        (
            {"query": "b", "positives": ["x"], "positive_teacher": [1, 2]},
            "field 'positive_teacher': expected one score for each of 1 positives, got 2",
        ),
        (
            {"query": "b", "positives": ["x"], "negatives": [{"text": "y", "id": "1"}, "z"]},
            "expected ids of negatives for all or for none, got 1 of 2",
        ),
        ([1], "expected a JSON object in one line, got a list"),
    ],
)
def test_a_broken_group_is_named_with_file_line_and_field(
    tmp_path: Path, second: object, expected: str
):
    path = write_lines(tmp_path / "g.jsonl", {"query": "a", "positives": ["p"]}, second)
    path.write_text("\n" + path.read_text())
    groups = GroupFile(path)

    assert groups[0].query == "a"
    with pytest.raises(DataError) as by_row:
        groups[1]
    with pytest.raises(DataError) as streamed:
        list(read_groups(path))

    assert str(by_row.value).startswith(f"{path}, line 3")
    assert expected in str(by_row.value)
    assert str(streamed.value) == str(by_row.value)


def test_unknown_ids_are_named(tmp_path: Path, folder: BeirFolder):
    path = write_lines(
        tmp_path / "m.jsonl",
        {"query_id": "q", "positives": ["0"]},
        {"query_id": "q", "positives": ["gone"]},
        {"query_id": "nobody", "positives": ["0"]},
    )
    groups = GroupFile(path, folder=folder)

    with pytest.raises(DataError, match=r"line 2, field 'positives': passage 'gone' is not in the"):
        groups[1]
    with pytest.raises(DataError, match=r"line 3, field 'query_id': query 'nobody' is not in the"):
        groups[2]


def test_what_cannot_be_a_training_file_is_refused_when_opened(tmp_path: Path):
    unknown = write_lines(tmp_path / "u.jsonl", {"anchor": "a", "positive": "b"})
    mined = write_lines(tmp_path / "m.jsonl", {"query_id": "q", "positives": ["0"]})
    (tmp_path / "empty.jsonl").touch()
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(TEVATRON).encode()))

    with pytest.raises(
        DataError, match=r"line 1: expected a training record .*tevatron: query and "
    ):
        GroupFile(unknown)
    with pytest.raises(DataError, match="line 1: refers to texts by id; specify the data folder"):
        GroupFile(mined)
    with pytest.raises(DataError, match="contains no training groups"):
        GroupFile(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="no such file"):
        GroupFile(tmp_path / "gone.jsonl")
    assert [group.query_id for group in read_groups(packed)] == ["17"]
    assert GroupFile(packed)[0].query_id == "17"


def test_rows_outside_the_file_are_refused(tmp_path: Path):
    groups = GroupFile(write_lines(tmp_path / "t.jsonl", TEVATRON))

    assert len(groups) == 1
    for row in (-1, 1):
        with pytest.raises(IndexError, match=f"expected a row from 0 to 0, got {row}"):
            groups[row]


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    text = "word " * 500
    path = tmp_path / "big.jsonl"
    with path.open("w") as handle:
        for number in range(4000):
            handle.write(json.dumps({"query": str(number), "positives": [text]}) + "\n")
    tracemalloc.start()
    groups = GroupFile(path)
    assert groups[3999].query == "3999"
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert path.stat().st_size > 10_000_000
    assert held < 300_000
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "record",
    [
        {"query": "a", "positives": ["0"], "negatives": ["1", "0"]},
        {"query": "a", "positives": ["0"], "negatives": [{"id": "1"}, {"id": "0"}]},
        {"query": "a", "positives": ["text"], "negatives": ["other", "text"]},
        {"query_id": "q", "positives": ["0"], "negatives": [{"id": "1"}, {"id": "0"}]},
        TEVATRON
        | {"negative_passages": [{"docid": "5", "text": "x"}, TEVATRON["positive_passages"][0]]},
        {
            "query_text": "a",
            "positive_document_ids": [0],
            "negative_document_ids": ["1", "0"],
        },
        DPR | {"hard_negative_ctxs": [*DPR["hard_negative_ctxs"], *DPR["positive_ctxs"]]},
        DPR
        | {
            "hard_negative_ctxs": [],
            "negative_ctxs": [*DPR["negative_ctxs"], *DPR["positive_ctxs"]],
        },
    ],
)
def test_a_negative_that_is_a_positive_is_dropped_in_every_format(tmp_path, folder, record):
    path = write_lines(tmp_path / "t.jsonl", record)

    (group,) = both(path, folder)

    assert len(group.negatives) == 1
    assert not {*group.negatives} & {*group.positives}
    assert count_dropped(record, format=GroupFile(path, folder=folder).format) == 1


def test_a_positive_that_is_a_negative_under_another_id_is_dropped(tmp_path):
    again = TEVATRON["positive_passages"][0] | {"docid": "99"}
    path = write_lines(tmp_path / "t.jsonl", TEVATRON | {"negative_passages": [again]})
    (group,) = both(path)
    assert (group.negatives, group.negative_ids) == ((), ())
