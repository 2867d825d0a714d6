"""Broken input of every reader: one clear error that names file and row, and nothing written."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptdr.data.formats.columns import TableSettings
from dptdr.data.formats.conversion import convert
from dptdr.data.formats.pairs import folder_from_records
from dptdr.data.formats.table_rows import object_rows
from dptdr.errors import ConfigError, DataError
from dptdr.io.trec import read_run

ROWS = [(f"question {number}", f"answer {number}") for number in range(3)]
TABLE = "question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS)
LINES = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ROWS)
CORPUS = "".join(json.dumps({"_id": f"d{n}", "text": a}) + "\n" for n, (_, a) in enumerate(ROWS))
CLICKS = "query,document,clicks\nq,d,3\n"
DAMAGED = bytearray(gzip.compress("".join(f"q{n},d{n},{n}\n" for n in range(500)).encode()))
DAMAGED[30:33] = b"\xff\xff\xff"
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
    "header alone": ("t.csv", "question,answer\n", "t.csv: the file contains no rows"),
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
    "clicks: header alone": ("t.csv", CLICKS.splitlines()[0], "t.csv: the file contains no rows"),
    "clicks: short row": ("t.csv", CLICKS + "q,d\n", "t.csv, line 3: expected 3 fields"),
    "clicks: open quote": ("t.csv", CLICKS + 'q,"d,1\n', "line 3: a quotation mark .* never"),
    "clicks: other digits": ("t.csv", CLICKS + "q,e,1_000\n", "line 3, field 'clicks': .* '1_000'"),
    "clicks: too many": ("t.csv", CLICKS + "q,d,999999\n", "line 3, field 'clicks': .* 1,000,002"),
    "clicks: UTF-16 without a mark": ("t.csv", CLICKS.encode("utf-16-le"), "line 1: .* UTF-16LE"),
    "clicks: old line ends": ("t.csv", CLICKS.replace("\n", "\r"), r"line 1: .* a lone \\r"),
    "clicks: list": ("t.jsonl", '{"query": "q", "answer": "a", "clicks": [1]}\n', "line 1.*a list"),
    "damaged archive": ("t.csv.gz", DAMAGED, "t.csv.gz, line .*decompressing"),
    "broken Parquet": ("t.parquet", "PAR1 and no more", "t.parquet, row 1: invalid Parquet"),
    "document in Latin-1": ("d/x.md", b"# caf\xe9\n", "x.md, line 1: expected UTF-8"),
    "documents without text": ("d/x.md", "# Title\n", "the documents contain no text"),
}
FOLDERS = {
    "empty corpus": (beir(corpus=""), "corpus.jsonl: the data contains no passages"),
    "list as text": (beir(corpus=CORPUS + '{"_id": "x", "text": ["a"]}\n'), "line 4, field 'text'"),
    "same id": (beir(corpus=CORPUS + '{"_id": "d0", "text": "a"}\n'), "line 4.*duplicate .*line 1"),
    "cut archive": (beir(packed=PACKED[: len(PACKED) // 2]), "corpus.jsonl.gz, line .*ended"),
    "short judgement": (beir(qrels="q0\td0\t1\nq0\td1\n"), "train.tsv, line 2: expected 3 fields"),
    "four columns": (beir(qrels="q0 0 d0 1\nq0 0 d1 high\n"), "line 2, field 'score'"),
    "no judgement": (beir(qrels=""), "train.tsv: the file contains no judgements"),
    "header alone": (beir(qrels="query-id\tcorpus-id\tscore\n"), "train.tsv: the file contains no"),
    "four columns, long": (beir(qrels="q0 0 d0 1 x\n"), "line 1: .* or 4 fields .*, got 5"),
    "four columns, Latin-1": (beir(qrels=b"q\xe9 0 d0 1\n"), "line 1: expected UTF-8"),
    "four columns, two grades": (
        beir(qrels="q0 0 d0 1\nq0 0 d0 2\n"),
        "line 2: .* conflicting grades",
    ),
    "two grades": (beir(qrels="q0\td0\t1\nq0\td0\t2\n"), "line 2: .* conflicting grades 1 and 2"),
}

HIT = "q0 Q0 d0 1 0.9 tag\n"
RUNS = {
    "empty": ("", "run: expected a run, but the file is empty"),
    "header": ("query-id Q0 passage-id rank score tag\n", "line 1, field 'rank': .* an integer"),
    "short row": (HIT + "q0 Q0 d1 2 0.5\n", "line 2: expected 6 fields .*, got 5"),
    "long row": (HIT + "q0 Q0 d1 2 0.5 a b\n", "line 2: expected 6 fields .*, got 7"),
    "Latin-1": (HIT.encode() + b"q0 Q0 d\xe9 2 0.5 t\n", "line 2: expected UTF-8"),
    "UTF-16": (HIT.encode("utf-16-le"), "line 1: .* UTF-16LE"),
    "score": (HIT + "q0 Q0 d1 2 nan t\n", "line 2, field 'score': expected a finite number"),
    "twice": (HIT + HIT, "line 2: query 'q0' lists passage 'd0' twice"),
}
OBJECTS = {
    "no rows": ([], "^expected rows, got none"),
    "one value": ([*ROWS, ("q",)], "^row 4: expected a query and a positive, got 1 values"),
    "text": ([*ROWS, "text"], "^row 4: expected a dict or a tuple of strings, got the text"),
    "split": (
        {"train": ROWS, "dev": [*ROWS, ("q", ["a"])]},
        "^split 'dev', row 4, field 'pos.*list",
    ),
    "score in a tuple": (
        [("q", "a", 1.0)],
        "^row 1: expected a tuple of strings, got the number 1",
    ),
    "bytes": ([("q", b"a")], "^row 1, field 'positive': .* a value of type bytes"),
    "surrogate": ([("q", "\ud800")], "^row 1, field 'positive': cannot encode as UTF-8"),
    "other columns": ([{"query": "q"}], "^row 1: expected a column positive"),
    "numbered columns": ([{0: "q", 1: "a"}], "^row 1: expected texts as names of columns"),
    "text as list": ([{"query": "q", "positives": "a"}], "^row 1, field 'positives': .* a list"),
    "long number": ([{"query": "q", "answer": "a", "clicks": 10**5000}], "^row 1, .* 40 digits"),
    "frame": (pd.DataFrame([["a", "b", "c"]], columns=["query", "query", "answer"]), "two columns"),
    "empty frame": (pd.DataFrame({"query": [], "answer": []}), "^expected rows, got none"),
}


def refused(source: Path, message: str) -> None:
    out = source.parent / "out"
    with pytest.raises(DataError, match=message) as caught:
        convert(source, out=out)
    assert "\n" not in str(caught.value)
    assert {path.name for path in source.parent.iterdir()} == {source.name}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


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


@pytest.mark.parametrize("case", RUNS)
def test_a_broken_run_is_refused_by_name_and_row(tmp_path: Path, case: str):
    content, message = RUNS[case]
    write(tmp_path / "run", content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("case", OBJECTS)
def test_broken_python_rows_are_refused_by_row(tmp_path: Path, case: str):
    rows, message = OBJECTS[case]
    with pytest.raises(DataError, match=message) as caught:
        folder_from_records(rows, out=tmp_path / "out")
    assert len(str(caught.value)) < 200
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_rows_is_refused_by_split():
    with pytest.raises(DataError, match=r"^split 'dev': expected rows .*, got the number 5"):
        next(object_rows(5, where="split 'dev'"))


def test_a_dataset_without_rows_or_with_a_column_of_lists_is_refused(tmp_path: Path):
    data = pytest.importorskip("datasets").Dataset
    with pytest.raises(DataError, match=r"^expected rows, got none"):
        folder_from_records(data.from_dict({"query": [], "answer": []}), out=tmp_path / "out")
    with pytest.raises(DataError, match=r"^row 1, field 'answer': expected a text, got a list"):
        folder_from_records(data.from_dict({"query": ["q"], "answer": [["a"]]}), out=tmp_path / "o")


def test_missing_values_of_frames_are_dropped_and_arrays_are_lists(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "query": pd.array(["a", pd.NA, "c"], dtype="string"),
            "positives": [np.array(["p", "q"]), np.array(["r"]), np.array(["s"])],
            "clicks": pd.array([3, 1, pd.NA], dtype="Int64"),
        }
    )
    done = folder_from_records(frame, out=tmp_path / "out")
    assert done.dropped == {"rows without a query": 1, "rows without clicks": 1}
    assert done.counts.judgements == {"train": 2}


def test_a_record_without_clicks_is_no_click(tmp_path: Path):
    rows = [{"query": "q", "document": "d", "clicks": 2}, {"query": "q", "document": "e"}]
    done = folder_from_records(rows, out=tmp_path / "out")
    assert done.dropped == {"rows without clicks": 1}


@pytest.mark.parametrize("name", [None, 0, "", "a/b", "../x"])
def test_names_that_cannot_be_a_split_are_refused(tmp_path: Path, name: object):
    with pytest.raises(ConfigError, match=r"^expected the name of a split"):
        folder_from_records({name: ROWS}, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["dev_share", "test_share", "min_score"])
def test_shares_and_scores_that_are_no_numbers_are_refused(name: str):
    with pytest.raises(ConfigError, match=r"^expected .*nan"):
        TableSettings(**{name: math.nan})


def test_a_parquet_file_cut_short_or_with_lists_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["c", "d"]}), path)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "t.parquet, row 1: invalid Parquet .*; the file may be truncated")
    pq.write_table(pa.table({"question": [["a"]], "answer": ["b"]}), path)
    refused(path, "row 1, field 'question': expected a text, got a list")
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}).slice(0, 0), path)
    refused(path, "t.parquet: the file contains no rows")


def test_a_saved_data_set_that_is_cut_short_or_empty_is_refused(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]}).save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-200])
    refused(folder, "arrow, row 1: invalid Arrow .*; the file may be truncated")
    datasets.Dataset.from_dict({"question": [], "answer": []}).save_to_disk(folder)
    refused(folder, "saved: the data set contains no rows")


def test_unknown_queries_and_splits_without_a_relevant_passage_are_reported(tmp_path: Path):
    for name, content in beir(qrels='"q0"\td0\t0\nq0\td9\t0\n').items():
        write(tmp_path / "source" / name, content)
    done = convert(tmp_path / "source", out=tmp_path / "out")
    assert (done.unknown_passages, done.unknown_queries) == (1, 1)
    assert done.notes == ("split 'train' has no judgements above 0",)
