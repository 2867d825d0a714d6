import gzip
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptdr.data.formats.table_rows import table_rows
from dptdr.errors import DataError


def values(path):
    return [dict(row.values) for row in table_rows(path)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'a,b\n"x, y","1\r\n""2"""\n\n'),
        ("t.csv", '\ufeffa;b\r\n"x, y";"1\r\n""2"""\r\n'),
        ("t.tsv", 'a\tb\nx, y\t"1\r\n""2"""'),
        ("t.jsonl", '{"a": "x, y", "b": "1\\r\\n\\"2\\""}\n\n'),
        ("t.json", '[{"a": "x, y", "b": "1\\r\\n\\"2\\""}]'),
        ("T.CSV", 'a,b\n"x, y","1\r\n""2"""\n'),
    ],
)
def test_text_tables_are_read(tmp_path, name, content):
    assert values(write(tmp_path / name, content)) == [{"a": "x, y", "b": '1\r\n"2"'}]


def test_packed_tables_are_read(tmp_path):
    path = write(tmp_path / "t.csv.gz", gzip.compress(b"a,b\n1,2\n"))
    assert values(path) == [{"a": "1", "b": "2"}]


def test_rows_know_their_lines_and_row_numbers(tmp_path):
    text = write(tmp_path / "t.csv", 'a\n"1\n2"\n\n3\n')
    assert [row.number for row in table_rows(text)] == [2, 5]
    pq.write_table(pa.table({"a": ["1", "2"]}), tmp_path / "t.parquet")
    assert str(list(table_rows(tmp_path / "t.parquet"))[1].error("wrong", "a")) == (
        f"{tmp_path / 't.parquet'}, row 2, field 'a': wrong"
    )


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_both_forms_of_arrow_are_read(tmp_path, kind):
    table = pa.table({"a": [str(number) for number in range(3000)]})
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opened(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table)

    assert values(tmp_path / "t.arrow") == table.to_pylist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", ": the file is empty"),
        ("t.csv", "a,b\n", ": the file contains no rows"),
        ("t.csv", "\n\n", ": the file contains no rows"),
        ("t.jsonl", "", ": the file is empty"),
        ("t.jsonl", "\n", ": the file contains no rows"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", ", line 3: expected 2 fields (a, b), got 3"),
        ("t.tsv", "a\tb\n1\n", ", line 2: expected 2 fields (a, b), got 1"),
        ("t.csv", "a,a\n1,2\n", ", line 1: two columns are named 'a'"),
        (
            "t.csv",
            'a,b\n1,2\n3,"4\n5,6\n7,8\n',
            ", line 3: a quotation mark opened in this row is never closed; "
            'double each quotation mark ("") inside a quoted field',
        ),
        (
            "t.csv",
            'a,b\n1,"2" 3\n',
            ", line 2: a closing quotation mark is in the middle of a field (line 2); "
            'double each quotation mark ("") inside a quoted field',
        ),
        (
            "t.csv",
            "a,b\n1,caf\xe9\n".encode("latin-1"),
            ", line 2: expected UTF-8 text, got 0xe9 at byte 6 of the line; save the file as UTF-8"
            ", or convert it (`iconv -f WINDOWS-1252 -t UTF-8`)",
        ),
        (
            "t.tsv",
            "a\tb\n1\t2\n".encode("utf-16"),
            ", line 1: expected UTF-8 text, got 0xff at byte 1 of the line; save the file as UTF-8"
            ", or convert it (`iconv -f UTF-16 -t UTF-8`)",
        ),
        (
            "t.jsonl",
            '{"a": "é"}\n{"a": "é"}\n'.encode("latin-1"),
            ", line 1: expected UTF-8 text, got 0xe9 at byte 8 of the line; save the file as UTF-8"
            ", or convert it (`iconv -f WINDOWS-1252 -t UTF-8`)",
        ),
        ("t.jsonl", '{"a": 1}\n[1]\n', ", line 2: expected a JSON object in one line, got a list"),
        ("t.txt", "a", ": expected a table (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow)"),
    ],
)
def test_broken_text_is_named_with_its_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        values(path)
    assert str(caught.value) == f"{path}{message}"


def test_a_quotation_that_swallows_a_large_file_is_found_before_its_end(tmp_path):
    path = write(tmp_path / "t.csv", b'a,b\n1,"2\n' + (b"3," + b"x" * 10_000 + b"\n") * 2000)
    with pytest.raises(DataError, match="line 2: a quotation mark opened in this row is never"):
        values(path)


def test_a_packed_table_cut_short_is_named(tmp_path):
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 100)
    with pytest.raises(DataError, match=r"t.csv.gz, line \d+: cannot be read: .*end-of-stream"):
        values(write(tmp_path / "t.csv.gz", packed[:-12]))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_parquet_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [str(number) for number in range(5000)]}), path)
    content = path.read_bytes()
    write(path, content[: int(len(content) * keep) or 8])
    with pytest.raises(DataError, match=r"t.parquet, row 1: invalid Parquet .*truncated"):
        values(path)


def test_an_arrow_stream_cut_short_is_named_with_the_first_row_that_lacks(tmp_path):
    path = tmp_path / "t.arrow"
    table = pa.table({"a": [str(number) for number in range(4000)]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    write(path, path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"t.arrow, row 3001: invalid Arrow .*truncated"):
        values(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": ["1"]}), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"t.parquet: .*needs pyarrow; run `pip install 'dptdr\[pa"):
        values(tmp_path / "t.parquet")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.csv: no such file"):
        values(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder.csv: expected a file, got a folder"):
        values(tmp_path / "folder.csv")


def test_a_column_that_is_there_twice_is_refused_in_parquet_too(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [arrow.array(["a"]), arrow.array(["b"]), arrow.array(["c"])]
    table = arrow.Table.from_arrays(columns, names=["query", "positive", "positive"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="expected distinct columns, got 'positive' twice"):
        list(table_rows(tmp_path / "t.parquet"))
