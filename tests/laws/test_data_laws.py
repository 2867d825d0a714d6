import csv
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.data.formats.conversion import convert
from dptdr.data.training_files import GroupFile
from dptdr.errors import DataError
from dptdr.io import jsonarray
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.io.store import PassageStore
from dptdr.records import Passage, Query

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0"), min_size=1, max_size=8
).filter(str.strip)


@settings(max_examples=60)
@given(
    passages=st.lists(
        st.builds(Passage, id=ids, text=texts, title=texts), max_size=6, unique_by=lambda p: p.id
    ),
    queries=st.lists(st.builds(Query, id=ids, text=texts), max_size=6, unique_by=lambda q: q.id),
    qrels=st.dictionaries(
        ids, st.dictionaries(ids, st.integers(-2, 9), min_size=1), min_size=1, max_size=4
    ),
)
def test_what_is_written_is_what_is_read(passages, queries, qrels):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "data"
        write_beir(path, passages=passages, queries=queries, qrels={"test": qrels}, meta={})

        folder = BeirFolder(path)
        assert list(folder.passages()) == passages
        assert list(folder.queries()) == queries
        assert folder.qrels("test") == qrels


@settings(max_examples=40)
@given(
    passages=st.lists(
        st.builds(Passage, id=ids, text=texts, title=texts), max_size=8, unique_by=lambda p: p.id
    )
)
def test_a_passage_by_id_is_that_passage(passages):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "data"
        write_beir(path, passages=passages, queries=[], qrels={}, meta={})
        store = PassageStore(BeirFolder(path))

        for passage in passages:
            assert store[passage.id] == passage


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80)
@given(
    elements=st.lists(values, max_size=6),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_an_array_read_in_pieces_is_the_array_read_whole(elements, indent, ascii_only, chunk):
    before = jsonarray._CHUNK_BYTES
    jsonarray._CHUNK_BYTES = chunk
    try:
        with tempfile.TemporaryDirectory() as root:
            path = Path(root) / "array.json"
            path.write_bytes(json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode())
            assert [found.value for found in jsonarray.array_elements(path)] == elements
    finally:
        jsonarray._CHUNK_BYTES = before


@settings(max_examples=40)
@given(
    groups=st.lists(
        st.fixed_dictionaries(
            {"query": texts, "positives": st.lists(texts, min_size=1, max_size=3)},
            optional={"negatives": st.lists(texts, max_size=3), "query_id": ids},
        ),
        min_size=1,
        max_size=5,
    )
)
def test_groups_by_row_are_groups_in_order(groups):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "groups.jsonl"
        lines = [json.dumps(group, ensure_ascii=False) + "\r\n" for group in groups]
        path.write_bytes("".join(lines).encode())
        file = GroupFile(path)

        found = [file[row] for row in reversed(range(len(file)))][::-1]
        assert found == list(file)
        assert [group.query for group in found] == [group["query"] for group in groups]
        assert [list(group.positives) for group in found] == [g["positives"] for g in groups]


rows = st.fixed_dictionaries(
    {"query": texts, "positive": texts, "negative_1": texts, "negative_2": texts}
)


def written(path, table):
    """Write a table in the format of its suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(handle, list(table[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(table)
    return path


def converted(source, out):
    """The bytes of all files but the one that describes the source, or why there are none."""
    try:
        convert(source, out=out)
    except DataError as error:
        return error.reason
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "meta.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@settings(max_examples=40)
@given(table=st.lists(rows, min_size=1, max_size=6))
def test_every_file_format_of_a_table_becomes_the_same_folder(table):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found = [
            converted(written(root / f"t{suffix}", table), root / suffix[1:])
            for suffix in (".csv", ".tsv", ".jsonl", ".parquet")
        ]
        assert found[1:] == found[:-1]
