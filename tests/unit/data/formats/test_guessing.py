import pytest

from dptdr.data.formats.guessing import guess_format
from dptdr.errors import DataError


@pytest.mark.parametrize(
    ("files", "format"),
    [
        (["corpus.jsonl", "queries.jsonl"], "beir"),
        (["corpus.jsonl.gz", "queries.jsonl.gz"], "beir"),
        (["corpus.jsonl", "train.jsonl"], "tevatron"),
        (["train.jsonl"], "tevatron"),
        (["collection.tsv"], "msmarco"),
        (["psgs_w100.tsv.gz"], "dpr"),
        (["biencoder-nq-train.json"], "dpr"),
        (["dataset_dict.json", "README.md"], "table"),
        (["state.json"], "table"),
        (["train.csv", "README.md"], "table"),
        (["index.md", "package.json"], "documents"),
        (["pairs.json"], "table"),
    ],
)
def test_folders_are_known_by_their_files(tmp_path, files, format):
    for name in files:
        (tmp_path / name).write_text('{"docid": "1", "text": "x"}\n')
    assert guess_format(tmp_path) == format


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("top1000.dev", "", "msmarco-top1000"),
        ("triples.train.small.tsv", "", "msmarco-triples"),
        ("a.jsonl", '{"query": "a", "positive_passages": []}', "tevatron"),
        ("a.jsonl", '{"query": "a", "positive": "b"}', "table"),
        ("a.jsonl", "", "table"),
        ("a.parquet", "", "table"),
        ("a.html", "", "documents"),
    ],
)
def test_files_are_known_by_their_names_and_first_records(tmp_path, name, content, format):
    (tmp_path / name).write_text(content)
    assert guess_format(tmp_path / name) == format


def test_what_is_unknown_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(DataError, match="unrecognised data; expected a table"):
        guess_format(tmp_path)
    with pytest.raises(DataError, match="no such file or folder; expected a table"):
        guess_format(tmp_path / "none")
