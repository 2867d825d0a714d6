import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.training_files import GroupFile
from dptdr.errors import DataError
from dptdr.evaluation.protocols.dpr import match_query_ids, read_questions
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Query

WIKIPEDIA = (
    "id\ttext\ttitle\n"
    '1\t"Aaron ( or ; ""Ahärôn"") is a prophet\u2028and priest."\tAaron\n'
    '2\tPlain text.\t"The ""Title"""\n'
    "0\tPassage zero.\tZero\n"
    "9\tHard one.\tNine\n"
)


def context(passage_id: str, text: str, title: str, **more: object) -> dict[str, Any]:
    return {"title": title, "text": text, "passage_id": passage_id, **more}


def training() -> list[dict[str, Any]]:
    return [
        {
            "dataset": "nq_train_psgs_w100",
            "question": "who is aaron",
            "answers": ["a prophet"],
            "positive_ctxs": [context("1", "Aaron text", "Aaron", score=1000)],
            "negative_ctxs": [context("2", "Plain text.", "T", score=0)],
            "hard_negative_ctxs": [
                context("9", "Hard one.", "Nine", score=14.5),
                context("0", "Passage zero.", "Zero", score=11),
            ],
        },
        {
            "question": "what is zero",
            "answers": ["nothing"],
            "positive_ctxs": [context("0", "Passage zero.", "Zero")],
            "negative_ctxs": [],
            "hard_negative_ctxs": [],
        },
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "dpr"
    folder.mkdir()
    (folder / "psgs_w100.tsv").write_text(WIKIPEDIA, newline="\n")
    (folder / "biencoder-nq-train.json").write_text(json.dumps(training(), indent=4))
    (folder / "nq-train.qa.csv").write_text("who is aaron\t['a prophet']\nonly a question\t['x']\n")
    (folder / "nq-test.qa.csv").write_text(
        'who got it\t[\'Wilhelm Röntgen\']\n"say ""hi"" now"\t[\'it\\\'s\', "two"]\n'
    )
    return folder


def test_passages_questions_judgements_and_negatives_are_converted(source: Path, tmp_path: Path):
    done = convert(str(source), format="dpr", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert list(folder.passages()) == [
        Passage("1", 'Aaron ( or ; "Ahärôn") is a prophet\u2028and priest.', "Aaron"),
        Passage("2", "Plain text.", 'The "Title"'),
        Passage("0", "Passage zero.", "Zero"),
        Passage("9", "Hard one.", "Nine"),
    ]
    assert list(folder.queries()) == [
        Query("train-0", "who is aaron"),
        Query("train-1", "what is zero"),
        Query("test-0", "who got it"),
        Query("test-1", 'say "hi" now'),
        Query("train-qa-1", "only a question"),
    ]
    assert folder.splits() == ["train"]
    assert folder.qrels("train") == {"train-0": {"1": 1}, "train-1": {"0": 1}}
    assert done.titled == 4
    assert {check.what: (check.expected, check.found) for check in done.checks} == {
        "psgs_w100.tsv": (21015324, 4),
        "biencoder-nq-train.json": (58880, 2),
        "nq-test.qa.csv": (3610, 2),
    }


def test_the_negatives_are_a_training_file_over_the_folder(source: Path, tmp_path: Path):
    convert(str(source), format="dpr", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    (group,) = GroupFile(folder.path / "negatives-train.jsonl", folder=folder)
    assert group.query == "who is aaron"
    assert group.negative_ids == ("9", "0")
    assert group.negatives == ("Nine Hard one.", "Zero Passage zero.")
    record = json.loads((folder.path / "negatives-train.jsonl").read_text())
    assert record["negatives"][0]["sources"] == {"dpr": {"rank": 1, "score": 14.5}}


def test_the_answers_can_be_evaluated_against_the_folder(source: Path, tmp_path: Path):
    convert(str(source), format="dpr", out=tmp_path / "out")

    questions = read_questions(tmp_path / "out" / "answers" / "nq-test.qa.csv")
    assert [question.answers for question in questions] == [
        ("Wilhelm Röntgen",),
        ("it's", "two"),
    ]
    ids = ["test-0", "test-1"]
    queries = tmp_path / "out" / "queries.jsonl"
    assert match_query_ids(questions, queries=queries, ranked=ids) == ids


def test_without_wikipedia_the_contexts_are_the_corpus(source: Path, tmp_path: Path):
    (source / "psgs_w100.tsv").unlink()
    whole = source / "biencoder-nq-train.json"
    (source / "biencoder-nq-train.json.gz").write_bytes(gzip.compress(whole.read_bytes()))
    whole.unlink()

    done = convert(str(source), format="dpr", out=tmp_path / "out")

    passages = {passage.id: passage for passage in BeirFolder(tmp_path / "out").passages()}
    assert list(passages) == ["1", "9", "0", "2"]
    assert passages["9"] == Passage("9", "Hard one.", "Nine")
    assert done.notes == ("no psgs_w100.tsv: the corpus consists of the training contexts only",)
    assert done.unknown_passages == 0


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("psgs_w100.tsv", 'id\ttext\ttitle\n1\t"open\tT\n', "line 2: expected quoted fields"),
        ("psgs_w100.tsv", "id\ttext\ttitle\n1\ttext\n", "line 2: expected 3 tab-separated fields"),
        (
            "psgs_w100.tsv",
            "1\tx\ty\n1\tx\ty\n",
            "line 2: duplicate passage id '1'; delete one",
        ),
        (
            "nq-test.qa.csv",
            "no answers\n",
            "nq-test.qa.csv, line 1: expected 2 tab-separated fields",
        ),
        ("nq-test.qa.csv", " \t['x']\n", "nq-test.qa.csv, line 1: expected a question, got an"),
        ("biencoder-nq-train.json", '[{"question": "w"},\n{"que', "line 2: the file ends inside"),
        ("biencoder-nq-train.json", "[7]", "expected an array of objects, got the number 7"),
        (
            "biencoder-nq-train.json",
            '[{"question": 7}]',
            "field 'question': expected a string, got",
        ),
        (
            "biencoder-nq-train.json",
            '[\n{"question": "w", "positive_ctxs": [{"text": "x"}]}]',
            "line 2, field 'positive_ctxs': expected a 'passage_id' or 'psg_id' in each context",
        ),
        (
            "biencoder-nq-train.json",
            '[{"question": "w", "positive_ctxs": "x"}]',
            "field 'positive_ctxs': expected a list of objects, got the text 'x'",
        ),
    ],
)
def test_a_broken_record_is_named_and_nothing_is_written(
    source: Path, tmp_path: Path, name: str, content: str, expected: str
):
    (source / name).write_text(content)

    with pytest.raises(DataError) as error:
        convert(str(source), format="dpr", out=tmp_path / "out")

    assert expected in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dpr"]


def test_a_folder_without_passages_and_two_data_sets_at_once_are_refused(
    source: Path, tmp_path: Path
):
    (source / "trivia-train.qa.csv").write_text("q\t['a']\n")
    with pytest.raises(DataError, match="several files of split 'train'; convert one data set"):
        convert(str(source), format="dpr", out=tmp_path / "out")
    for name in ("psgs_w100.tsv", "biencoder-nq-train.json", "trivia-train.qa.csv"):
        (source / name).unlink()
    with pytest.raises(DataError, match=r"expected psgs_w100.tsv"):
        convert(str(source), format="dpr", out=tmp_path / "out")


def test_a_hard_negative_that_is_a_positive_is_dropped_and_counted(source: Path, tmp_path: Path):
    records = training()
    records[0]["hard_negative_ctxs"].append(records[0]["positive_ctxs"][0])
    (source / "biencoder-nq-train.json").write_text(json.dumps(records))

    done = convert(str(source), format="dpr", out=tmp_path / "out")

    assert done.dropped == {"negatives that are a positive": 1}
    record = json.loads((tmp_path / "out" / "negatives-train.jsonl").read_text())
    assert [negative["id"] for negative in record["negatives"]] == ["9", "0"]
