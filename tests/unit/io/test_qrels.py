"""Judgement files in both layouts."""

import pytest

from dptdr.errors import DataError
from dptdr.evaluation import read_qrels


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\tp 1\t1\nq1\t0\t0\nq2\tp2\t3\n",
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\tp\t1\nq\tp2\n", "line 2: expected 3 fields separated by tabs .* found 2"),
        ("q\tp\tyes\n", "line 1, field 'score': expected a whole number, found 'yes'"),
        ("q\tp\t0.5\n", "line 1, field 'score': expected a whole number, found '0.5'"),
        ("q\t\t1\n", "line 1, field 'corpus-id': expected an id, found nothing"),
        ("q 0 p\n", "line 1: expected 4 fields .* found 3"),
        ("q 0 p 1\nq 0 p 2\n", "line 2: query 'q', passage 'p' has grade 2 here and 1 above"),
        ("query-id\tcorpus-id\tscore\n", "expected judgements, the file holds none"),
    ],
)
def test_read_qrels_names_what_is_wrong_and_where(tmp_path, text, message):
    path = tmp_path / "qrels.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_qrels(path)
    assert str(path) in str(caught.value)


def test_read_qrels_of_a_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="expected a file, this is a folder"):
        read_qrels(tmp_path)
