"""Broken input of every reader: one clear error that names file and row, and nothing written."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptdr.data.formats.conversion import convert
from dptdr.errors import DataError

ROWS = [(f"question {number}", f"answer {number}") for number in range(3)]
TABLE = "question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS)
LINES = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ROWS)
CORPUS = "".join(json.dumps({"_id": f"d{n}", "text": a}) + "\n" for n, (_, a) in enumerate(ROWS))
CLICKS = "query,document,clicks\nq,d,3\n"
PACKED = gzip.compress((CORPUS * 50).encode())


def beir(**files: str | bytes) -> dict[str, str | bytes]:
    """Return the files of a small BEIR folder, some of them replaced."""
    names = {"corpus": "corpus.jsonl", "qrels": "qrels/train.tsv", "packed": "corpus.jsonl.gz"}
    whole: dict[str, str | bytes] = {
        "queries.jsonl": '{"_id": "q0", "text": "question"}\n',
        "qrels/train.tsv": "q0\td0\t1\n",
    }
    if "packed" not in files:
        whole["corpus.jsonl"] = CORPUS
    return whole | {names[name]: content for name, content in files.items()}


TEXT = {
    "empty": ("t.csv", "", "t.csv: the file is empty"),
    "header alone": ("t.csv", "question,answer\n", "t.csv: the file holds no row"),
    "short row": ("t.csv", TABLE + "one cell\n", "t.csv, line 5: expected 2 fields"),
    "long row": ("t.csv", TABLE + "a,b,c\n", "t.csv, line 5: expected 2 fields .*, got 3"),
    "open quote": ("t.csv", TABLE + 'a,"b\n' + TABLE, "t.csv, line 5: a quotation mark .* never"),
    "Latin-1": ("t.csv", TABLE.encode() + b"caf\xe9,x\n", "t.csv, line 5: expected UTF-8"),
    "UTF-16": ("t.csv", TABLE.encode("utf-16"), "t.csv, line 1: expected UTF-8"),
    "tabs": ("t.tsv", TABLE.replace(",", "\t") + "a\n", "t.tsv, line 5: expected 2 fields"),
    "same column twice": ("t.csv", "question,question,answer\na,b,c\n", "two columns are named"),
    "other columns": ("t.csv", "a,b\nx,y\n", "t.csv, line 2: expected a column .*: a, b"),
    "cut archive": ("t.csv.gz", gzip.compress(TABLE.encode() * 50)[:80], "t.csv.gz, line .*ended"),
    "no archive": ("t.csv.gz", TABLE, "t.csv.gz, line 1: .* Not a gzipped file"),
    "half a line": ("t.jsonl", LINES + '{"ques', "t.jsonl, line 4: expected a JSON object"),
    "list": ("t.jsonl", LINES + '{"question": ["a"], "answer": "b"}\n', "line 4, field 'question'"),
    "no positive": ("t.jsonl", LINES + '{"question": "a"}\n', "line 4: expected a column"),
    "half an array": ("t.json", '[{"question": "a", "answer": "b"}, {', "ends inside the array"),
    "clicks below 0": ("t.csv", CLICKS + "q,e,-1\n", "line 3, field 'clicks': expected a whole"),
    "clicks in words": (
        "t.csv",
        CLICKS + "q,e,some\n",
        "line 3, field 'clicks': expected a number",
    ),
    "broken Parquet": ("t.parquet", "PAR1 and no more", "t.parquet, row 1: cannot be read"),
    "document in Latin-1": ("d/x.md", b"# caf\xe9\n", "x.md, line 1: expected UTF-8"),
    "documents without text": ("d/x.md", "# Title\n", "the documents hold no text"),
}
FOLDERS = {
    "empty corpus": (beir(corpus=""), "corpus.jsonl: the data hold no passage"),
    "list as text": (beir(corpus=CORPUS + '{"_id": "x", "text": ["a"]}\n'), "line 4, field 'text'"),
    "same id": (beir(corpus=CORPUS + '{"_id": "d0", "text": "a"}\n'), "line 4.*duplicate .*line 1"),
    "cut archive": (beir(packed=PACKED[: len(PACKED) // 2]), "corpus.jsonl.gz, line .*ended"),
    "short judgement": (beir(qrels="q0\td0\t1\nq0\td1\n"), "train.tsv, line 2: expected 3 fields"),
    "four columns": (beir(qrels="q0 0 d0 1\nq0 0 d1 high\n"), "line 2, field 'score'"),
    "two grades": (beir(qrels="q0\td0\t1\nq0\td0\t2\n"), "line 2: .* judged twice, 1 and 2"),
}


def refused(source: Path, message: str) -> None:
    out = source.parent / "out"
    with pytest.raises(DataError, match=message) as caught:
        convert(source, out=out)
    assert "\n" not in str(caught.value)
    assert {path.name for path in source.parent.iterdir()} == {source.name}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", TEXT)
def test_a_broken_file_is_refused_by_name_and_row(tmp_path: Path, case: str):
    name, content, message = TEXT[case]
    write(tmp_path / name, content)
    refused(tmp_path / Path(name).parts[0], message)


@pytest.mark.parametrize("case", FOLDERS)
def test_a_broken_beir_folder_is_refused_by_name_and_row(tmp_path: Path, case: str):
    files, message = FOLDERS[case]
    for name, content in files.items():
        write(tmp_path / "source" / name, content)
    refused(tmp_path / "source", message)


def test_a_parquet_file_cut_short_or_with_lists_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["c", "d"]}), path)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "t.parquet, row 1: cannot be read as Parquet .*; was the file cut short")
    pq.write_table(pa.table({"question": [["a"]], "answer": ["b"]}), path)
    refused(path, "row 1, field 'question': expected a text, got a list")
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}).slice(0, 0), path)
    refused(path, "t.parquet: the file holds no row")


def test_a_saved_data_set_that_is_cut_short_or_empty_is_refused(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]}).save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-200])
    refused(folder, "arrow, row 1: cannot be read as Arrow .*; was the file cut short")
    datasets.Dataset.from_dict({"question": [], "answer": []}).save_to_disk(folder)
    refused(folder, "saved: the data set holds no row")


def test_unknown_queries_and_splits_without_a_relevant_passage_are_reported(tmp_path: Path):
    for name, content in beir(qrels='"q0"\td0\t0\nq0\td9\t0\n').items():
        write(tmp_path / "source" / name, content)
    done = convert(tmp_path / "source", out=tmp_path / "out")
    assert (done.unknown_passages, done.unknown_queries) == (1, 1)
    assert done.notes == ("split 'train' holds no judgement above 0",)
