import gzip
import hashlib
import json
from pathlib import Path

import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.formats.writing import Check
from dptdr.data.training_files import GroupFile
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Query

ODD = 'odd \u2028 \x85 \x0c lone "quote and \\ backslash é'


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(
        tmp_path / "msmarco",
        collection__tsv=f"0\tThe passage of id zero.\r\n1\t{ODD}\n7\tSeven.\n",
        queries__train__tsv="10\twhat is zero\n11\twhat is odd\n",
        queries__dev__tsv="20\tfirst of dev\n21\tsecond of dev\n",
        queries__dev__small__tsv="21\tsecond of dev\n",
        qrels__train__tsv="10\t0\t0\t1\n11\t0\t1\t1\n",
        qrels__dev__tsv="20 0 7 1\n21 0 7 1\n21 0 1 1\n",
        qrels__dev__small__tsv="21\t0\t7\t1\r\n21\t0\t1\t1\r\n",
    )


def test_the_official_files_become_a_folder(source: Path, tmp_path: Path):
    done = convert(str(source), format="msmarco", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert list(folder.passages()) == [
        Passage("0", "The passage of id zero."),
        Passage("1", ODD),
        Passage("7", "Seven."),
    ]
    assert {query.id: query.text for query in folder.queries()} == {
        "10": "what is zero",
        "11": "what is odd",
        "20": "first of dev",
        "21": "second of dev",
    }
    assert folder.splits() == ["train", "dev", "dev.small"]
    assert folder.qrels("train") == {"10": {"0": 1}, "11": {"1": 1}}
    assert folder.qrels("dev") == {"20": {"7": 1}, "21": {"7": 1, "1": 1}}
    assert folder.qrels("dev.small") == {"21": {"7": 1, "1": 1}}
    assert done.titled == 0
    assert done.unknown_passages == 0
    assert done.counts is not None
    assert done.counts.queries == 4


def test_counts_checksums_and_titles_stand_in_meta(source: Path, tmp_path: Path):
    done = convert(str(source), format="msmarco", out=tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())

    assert Check(what="collection.tsv", expected=8841823, found=3) in done.checks
    assert {check["what"]: check["expected"] for check in meta["checks"]} == {
        "collection.tsv": 8841823,
        "queries.train.tsv": 808731,
        "queries.dev.tsv": 101093,
        "queries.dev.small.tsv": 6980,
        "qrels.train.tsv": 532761,
        "qrels.dev.tsv": 59273,
        "qrels.dev.small.tsv": 7437,
    }
    assert len(done.differences) == 7
    first = meta["files"][0]
    content = (source / "collection.tsv").read_bytes()
    assert first == {
        "name": "collection.tsv",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert len(meta["files"]) == 7
    assert meta["titles"] == {"with": 0, "without": 3}
    assert meta["format"] == "msmarco"


def test_strict_refuses_what_differs_and_writes_nothing(source: Path, tmp_path: Path):
    with pytest.raises(
        DataError, match=r"collection.tsv: expected 8,841,823 records as published, got 3"
    ):
        convert(str(source), format="msmarco", out=tmp_path / "out", strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["msmarco"]


def test_packed_files_trec_topics_and_a_collection_with_titles_are_read(tmp_path: Path):
    source = write(
        tmp_path / "s",
        collection__tsv__gz=gzip.compress(b"0\tA title\tIts text\n1\t\tNo title\n"),
    )
    (source / "msmarco-test2019-queries.tsv").write_text("5\ta topic\n")
    (source / "2019qrels-pass.txt").write_text("5 Q0 0 3\n5 Q0 1 0\n5 Q0 44 2\n")
    (source / "triples.train.small.tsv").touch()

    done = convert(str(source), format="msmarco", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert list(folder.passages()) == [
        Passage("0", "Its text", "A title"),
        Passage("1", "No title"),
    ]
    assert folder.qrels("trec-dl-2019") == {"5": {"0": 3, "1": 0, "44": 2}}
    assert list(folder.queries()) == [Query("5", "a topic")]
    assert done.titled == 1
    assert done.unknown_passages == 1
    assert "--format msmarco-triples" in done.notes[0]
    with pytest.raises(DataError, match="1 judgements refer to unknown passages"):
        convert(str(source), format="msmarco", out=tmp_path / "out", strict=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "collection.tsv",
            "0\tfine\n1\n",
            "collection.tsv, line 2: expected 2 tab-separated fields",
        ),
        ("collection.tsv", "0\tfine\n1\ta\tb\n", "line 2: expected 2 tab-separated fields (id"),
        (
            "collection.tsv",
            "0\ta\n1\tb\n0\tc\n",
            "line 3: duplicate passage id '0'; delete one",
        ),
        ("collection.tsv", "\tfine\n", "line 1, field 'id': expected an id, got an empty string"),
        (
            "collection.tsv",
            b"0\tfine\n1\t\xff\n",
            "line 2: expected UTF-8 text, got 0xff at byte 3 of the line",
        ),
        (
            "queries.train.tsv",
            "10\ta\n10\ta\n",
            "line 2: duplicate query id '10'; delete one",
        ),
        ("queries.dev.small.tsv", "20\tother\n", "query '20' has a different text in an earlier"),
        ("queries.train.tsv", "10\n", "queries.train.tsv, line 1: expected 2 tab-separated fields"),
        ("qrels.train.tsv", "10\t0\n", "qrels.train.tsv, line 1: expected 3 fields separated by"),
        ("qrels.train.tsv", "10\t0\t0\tyes\n", "field 'score': expected an integer, got 'yes'"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_written(
    source: Path, tmp_path: Path, name: str, content: str | bytes, expected: str
):
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(DataError) as error:
        convert(str(source), format="msmarco", out=tmp_path / "out")

    assert expected in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["msmarco"]


def test_a_missing_folder_or_collection_is_named(source: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"expected a folder with collection\.tsv"):
        convert(str(tmp_path / "gone"), format="msmarco", out=tmp_path / "out")
    (source / "collection.tsv").unlink()
    with pytest.raises(DataError, match=r"got no collection\.tsv"):
        convert(str(source), format="msmarco", out=tmp_path / "out")


def test_top1000_becomes_a_folder_with_its_candidates(tmp_path: Path):
    file = tmp_path / "top1000.dev"
    file.write_text("5\t0\tquery five\ttext 0\n5\t3\tquery five\ttext 3\n6\t0\tquery six\ttext 0\n")

    done = convert(str(file), format="msmarco-top1000", out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert [passage.id for passage in folder.passages()] == ["0", "3"]
    assert list(folder.queries()) == [Query("5", "query five"), Query("6", "query six")]
    assert (folder.path / "candidates.trec").read_text() == (
        "5 Q0 0 1 -1 top1000\n5 Q0 3 2 -2 top1000\n6 Q0 0 1 -1 top1000\n"
    )
    assert done.checks == (Check(what="top1000.dev", expected=6668967, found=3),)
    with pytest.raises(DataError, match="no such file; expected MS MARCO's top1000 file"):
        convert(str(tmp_path / "gone"), format="msmarco-top1000", out=tmp_path / "x")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("6\t0\tquery six\tOTHER", "line 2: passage '0' has another text before"),
        ("5\t1\tOTHER\ttext 1", "line 2: query '5' has another text before"),
    ],
)
def test_top1000_with_two_texts_of_one_id_is_refused(tmp_path: Path, line, words):
    file = tmp_path / "top1000.dev"
    file.write_text(f"5\t0\tquery five\ttext 0\n{line}\n")
    with pytest.raises(DataError, match=words):
        convert(str(file), format="msmarco-top1000", out=tmp_path / "out")


def test_triples_of_ids_become_a_training_file(source: Path, tmp_path: Path):
    file = tmp_path / "qidpidtriples.train.full.2.tsv"
    file.write_text("10\t0\t1\n10\t0\t7\n11\t1\t0\n")

    done = convert(str(file), format="msmarco-triples", out=tmp_path / "triples.jsonl")

    convert(str(source), format="msmarco", out=tmp_path / "out")
    groups = GroupFile(tmp_path / "triples.jsonl", folder=BeirFolder(tmp_path / "out"))
    assert done.groups == len(groups) == 2
    assert done.checks[0].found == 3
    assert groups[0].query == "what is zero"
    assert groups[0].positives == ("The passage of id zero.",)
    assert groups[0].negatives == (ODD, "Seven.")
    assert groups[1].negative_ids == ("0",)


def test_triples_of_texts_become_a_training_file(tmp_path: Path):
    file = tmp_path / "triples.train.small.tsv"
    file.write_text(f"what\tyes\t{ODD}\nwhat\tyes\tno\n", newline="\n")

    convert(str(file), format="msmarco-triples", out=tmp_path / "triples.jsonl")

    (group,) = GroupFile(tmp_path / "triples.jsonl")
    assert group.query == "what"
    assert group.positives == ("yes",)
    assert group.negatives == (ODD, "no")


def test_triples_that_are_cut_short_leave_no_file(tmp_path: Path):
    file = tmp_path / "triples.tsv"
    file.write_text("1\t2\t3\n1\t2")

    with pytest.raises(DataError, match=r"line 2: expected 3 tab-separated fields .*truncated"):
        convert(str(file), format="msmarco-triples", out=tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["triples.tsv"]


def test_an_unknown_format_names_those_there_are(source: Path, tmp_path: Path):
    with pytest.raises(
        DataError, match="expected a format among table, documents, beir, dpr, msmarco, "
    ):
        convert(str(source), format="csv", out=tmp_path / "out")


@pytest.mark.parametrize("line", ["10\t0\t{}\n", "what\tyes\t{}\n"])
def test_triples_whose_negative_is_the_positive_are_dropped_and_counted(tmp_path: Path, line):
    file = tmp_path / "triples.tsv"
    file.write_text(line.format("7") + line.format(line.split("\t")[1]))

    done = convert(str(file), format="msmarco-triples", out=tmp_path / "triples.jsonl")

    assert done.dropped == {"negatives that are a positive": 1}
    assert len(json.loads((tmp_path / "triples.jsonl").read_text())["negatives"]) == 1
