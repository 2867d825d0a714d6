"""Judgement files in both layouts. What is refused is tested through the data folder."""

import pytest

from dptdr.errors import DataError
from dptdr.evaluation import read_qrels


@pytest.mark.parametrize(
    "text",
    [
        "query_id\tcorpus_id\tscore\nq1\tp 1\t1\nq1\t0\t0\nq2\tp2\t3\n",
        "q1\tp 1\t1\r\nq1\t0\t0\r\nq2\tp2\t3\r\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\tp 1\t1\n\nq1\t0\t0\nq2\tp2\t3\nq2\tp2\t3",
    ],
)
def test_read_qrels_beir_with_and_without_header(tmp_path, text):
    path = tmp_path / "qrels.tsv"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_qrels(path) == {"q1": {"p 1": 1, "0": 0}, "q2": {"p2": 3}}


@pytest.mark.parametrize("text", ["1 0 7 1\n1 Q0 0 2\n", "1\t0\t7\t1\n1\t0\t0\t2\n"])
def test_read_qrels_trec_with_blanks_or_tabs(tmp_path, text):
    path = tmp_path / "qrels"
    path.write_text(text)
    assert read_qrels(path) == {"1": {"7": 1, "0": 2}}


def test_read_qrels_of_a_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="expected a file, got a folder"):
        read_qrels(tmp_path)


@pytest.mark.parametrize(
    "header",
    ["corpus-id\tquery-id\tscore", "score\tquery-id\tcorpus-id", "query_id\tscore\tcorpus_id"],
)
def test_columns_in_another_order_are_refused(tmp_path, header):
    (tmp_path / "q.tsv").write_text(f"{header}\na\tb\t1\n")
    with pytest.raises(DataError, match=r"q.tsv, line 1: expected columns in the order query-id"):
        read_qrels(tmp_path / "q.tsv")


@pytest.mark.parametrize("header", ["qid\tpid\tlabel", "query-id\tfoo\tscore", "q\td\tscore"])
def test_other_names_in_the_order_of_beir_are_read(tmp_path, header):
    (tmp_path / "q.tsv").write_text(f"{header}\na\tb\t1\n".replace("qid\t", "query-id\t"))
    assert read_qrels(tmp_path / "q.tsv") == {"a": {"b": 1}}
