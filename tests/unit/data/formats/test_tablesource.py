import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptdr.data.formats.columns import TableSettings
from dptdr.data.formats.conversion import convert
from dptdr.errors import ConfigError, DataError
from dptdr.io.beir import BeirFolder

HEAD = "query,positive\n"


def splits(source, out, **settings):
    """Convert and return the texts of the queries of each split."""
    convert(source, out=out, table=TableSettings(**settings))
    folder = BeirFolder(out)
    names = {query.id: query.text for query in folder.queries()}
    return {split: [names[query] for query in folder.qrels(split)] for split in folder.splits()}


def save_to_disk(folder, rows, *, split=None):
    """Write what `datasets.Dataset.save_to_disk` writes, in two files."""
    folder.mkdir(parents=True)
    files = []
    for number, part in enumerate((rows[:1], rows[1:])):
        name = f"data-0000{number}-of-00002.arrow"
        table = pa.Table.from_pylist(part)
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
        files.append({"filename": name})
    state = {"_data_files": files, "_fingerprint": "0", "_format_type": None, "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_files_of_a_folder_are_its_splits(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "train-00000-of-00002.csv").write_text(HEAD + "a,1\n")
    (source / "train-00001-of-00002.csv").write_text(HEAD + "b,2\n")
    (source / "validation.jsonl").write_text('{"query": "c", "positive": "3"}')
    (source / "test.tsv").write_text("query\tpositive\nd\t4\n")
    (source / "README.md").write_text("# Read me")
    (source / ".hidden.csv").write_text("x")

    found = splits(source, tmp_path / "out")

    assert found == {"train": ["a", "b"], "dev": ["c"], "test": ["d"]}


def test_files_without_a_split_in_their_names_are_one_table(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "part-0.csv").write_text(HEAD + "a,1\n")
    (source / "part-1.csv").write_text(HEAD + "b,2\n")

    assert splits(source, tmp_path / "out") == {"train": ["a", "b"]}
    assert splits(source, tmp_path / "out", split="test") == {"test": ["a", "b"]}


def test_one_file_is_the_split_of_its_name_or_the_given_one(tmp_path):
    for name in ("pairs.csv", "dev.csv", "training.csv"):
        (tmp_path / name).write_text(HEAD + "a,1\n")

    assert list(splits(tmp_path / "pairs.csv", tmp_path / "out")) == ["train"]
    assert list(splits(tmp_path / "dev.csv", tmp_path / "out")) == ["dev"]
    assert list(splits(tmp_path / "training.csv", tmp_path / "out", split="test")) == ["test"]


def test_a_dataset_on_disk_is_read_in_the_order_of_its_files(tmp_path):
    rows = [{"query": text, "positive": text * 2} for text in "abc"]
    save_to_disk(tmp_path / "one", rows)
    save_to_disk(tmp_path / "named", rows, split="validation")

    assert splits(tmp_path / "one", tmp_path / "out") == {"train": ["a", "b", "c"]}
    assert splits(tmp_path / "named", tmp_path / "out") == {"dev": ["a", "b", "c"]}
    assert list(splits(tmp_path / "named", tmp_path / "out", split="x")) == ["x"]


def test_a_dataset_dict_on_disk_keeps_its_splits(tmp_path):
    source = tmp_path / "in"
    for name in ("train", "validation"):
        rows = [{"anchor": f"{name} {i}", "positive": str(i)} for i in range(2)]
        save_to_disk(source / name, rows, split=name)
    (source / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')

    found = splits(source, tmp_path / "out")

    assert found == {"train": ["train 0", "train 1"], "dev": ["validation 0", "validation 1"]}


def test_a_dataset_with_a_broken_state_or_a_missing_file_is_named(tmp_path):
    save_to_disk(tmp_path / "in", [{"query": "a", "positive": "1"}] * 2)
    (tmp_path / "in" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: no such file"):
        convert(tmp_path / "in", out=tmp_path / "out")
    (tmp_path / "in" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json, field '_data_files': expected a list"):
        convert(tmp_path / "in", out=tmp_path / "out")


def test_a_file_beside_named_splits_is_refused(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "train.csv").write_text(HEAD + "a,1\n")
    (source / "more.csv").write_text(HEAD + "b,2\n")
    with pytest.raises(DataError, match=r"expected files named after splits.*, got more.csv"):
        convert(source, out=tmp_path / "out")
    (source / "more.csv").unlink()
    with pytest.raises(ConfigError, match="splits are named by the files; omit --split"):
        convert(source, out=tmp_path / "out", table=TableSettings(split="test"))


def test_a_column_of_lists_is_refused_with_file_and_row(tmp_path):
    pq.write_table(pa.table({"query": ["a"], "positive": [["1", "2"]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "t.parquet", out=tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 't.parquet'}, row 1, field 'positive': expected a text, got a list"
    )


def test_a_later_json_line_without_the_column_is_refused_with_its_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"query": "a", "positive": "1"}\n{"query": "a", "pos": 1}\n')
    with pytest.raises(DataError, match=r"t.jsonl, line 2: .*; the columns are: query, pos$"):
        convert(tmp_path / "t.jsonl", out=tmp_path / "out")


def test_options_of_tables_are_refused_for_other_formats(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("text")
    with pytest.raises(ConfigError, match="apply only to tables, but the format is documents"):
        convert(tmp_path / "in", out=tmp_path / "out", table=TableSettings(split="test"))
