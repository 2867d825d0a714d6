"""Run files: what is read, what is refused, what is written."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dptdr.errors import DataError, EvaluationError
from dptdr.evaluation import read_run, write_run
from dptdr.records import Hit


def _write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_read_run_orders_by_score_then_rank_whatever_the_lines_order(tmp_path):
    path = _write(
        tmp_path / "run",
        "q1 Q0 c 3 1.5 t\nq2 Q0 a 1 9 t\nq1 Q0 a 2 1.5 t\r\nq1\tQ0\tb\t1\t2e0\tt\n\n",
    )
    assert read_run(path) == {
        "q1": [Hit("b", 2.0), Hit("a", 1.5), Hit("c", 1.5)],
        "q2": [Hit("a", 9.0)],
    }


def test_read_run_keeps_unicode_separators_out_of_line_counts(tmp_path):
    path = _write(tmp_path / "run", "q1 Q0 a\u2028b 1 2 t\nq1 Q0 x 1\n")
    with pytest.raises(DataError, match=r"line 1: expected 6 fields .* got 7"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 b 2 1.0", r"line 2: expected 6 fields \(query-id Q0 passage-id rank score tag\)"),
        ("q1 Q0 b two 1.0 t", "line 2, field 'rank': expected an integer, got 'two'"),
        ("q1 Q0 b -1 1.0 t", "line 2, field 'rank': expected a rank of at least 0, got -1"),
        (
            "q1 Q0 b 2 high t",
            "line 2, field 'score': expected a finite number in .* got 'high'",
        ),
        ("q1 Q0 b 2 nan t", "line 2, field 'score': expected a finite number in .* got 'nan'"),
        ("q1 Q0 b 2 1e39 t", "line 2, field 'score': expected a finite number in .* got '1e39'"),
        ("q1 Q0 b 2 1_0 t", "line 2, field 'score': expected a finite number in .* got '1_0'"),
        ("q1 Q0 b 4294967296 1 t", "field 'rank': expected an integer from -2,147,483,647 to"),
        (f"q1 Q0 b {'9' * 5000} 1 t", "field 'rank': expected an integer from -2,147,483,647 to"),
        ("q1 Q0 a 2 1.0 t", "line 2: query 'q1' lists passage 'a' twice"),
    ],
)
def test_read_run_names_file_line_and_field_of_a_broken_line(tmp_path, line, message):
    path = _write(tmp_path / "broken.trec", f"q1 Q0 a 1 2.0 t\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_read_run_of_a_missing_file_says_so(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_run(tmp_path / "absent")


def test_read_run_of_latin1_names_the_byte(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(b"q1 Q0 a 1 2 t\nq1 Q0 \xe9 2 1 t\n")
    with pytest.raises(
        DataError, match="line 2: expected UTF-8 text, got 0xe9 at byte 7 of the line"
    ):
        read_run(path)


def test_write_run_separates_equal_scores_so_that_every_tool_sees_one_order(tmp_path):
    run = {"q": [Hit("z", 1.0), Hit("a", 1.0), Hit("m", 1.0), Hit("b", 0.5)]}
    write_run(tmp_path / "run", run, tag="t")
    read = read_run(tmp_path / "run")["q"]
    assert [hit.passage_id for hit in read] == ["z", "a", "m", "b"]
    singles = [np.float32(hit.score) for hit in read]
    assert all(before > after for before, after in pairwise(singles))
    assert read[0].score == 1.0
    assert read[3].score == 0.5
    assert 1.0 - read[2].score < 1e-6


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q": [Hit("a", 1.0), Hit("b", 2.0)]}, "t", "rank 2: score 2.0 is higher than"),
        (
            {"q": [Hit("a", float("nan"))]},
            "t",
            "passage 'a': expected a finite score in .* got nan",
        ),
        ({"q 1": [Hit("a", 1.0)]}, "t", "query id 'q 1': expected a non-empty string"),
        ({"q": [Hit("", 1.0)]}, "t", "passage id '': expected a non-empty string"),
        ({"q": [Hit("a", 1.0)]}, "a b", "tag 'a b': expected a non-empty string"),
    ],
)
def test_write_run_refuses_what_cannot_be_read_back_and_keeps_the_old_file(
    tmp_path, run, tag, message
):
    path = tmp_path / "run"
    write_run(path, {"old": [Hit("p", 1.0)]}, tag="old")
    with pytest.raises(EvaluationError, match=message):
        write_run(path, run, tag=tag)
    assert read_run(path) == {"old": [Hit("p", 1.0)]}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
