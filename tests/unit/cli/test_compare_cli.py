"""``dptdr compare`` from the command line."""

import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import EvaluationError
from dptdr.evaluation.report import EvaluationReport


def _report(path, system, values, **changes):
    per_query = {f"q{index:02d}": value for index, value in enumerate(values)}
    fields = {
        "system": system,
        "data": "animals",
        "split": "test",
        "judgements_fingerprint": "j",
        "protocol": "ir_measures",
        "measures": {"nDCG@10": sum(values) / len(values)},
        "per_query": {"nDCG@10": per_query},
        "queries": len(values),
        "details": {"data_fingerprint": "d"},
    }
    EvaluationReport(**{**fields, **changes}).write(path)
    return path


def _invoke(*arguments):
    return CliRunner().invoke(build_app(), ["compare", *map(str, arguments)])


def test_compare_prints_and_writes_differences_with_p_values(tmp_path):
    base = _report(tmp_path / "a.json", "bm25", [0.0] * 8)
    better = _report(tmp_path / "b.json", "task", [0.5] * 7 + [-0.5])
    same = _report(tmp_path / "c.json", "task", [0.0] * 8)
    result = _invoke(
        base, better, same, "--json", tmp_path / "c", "--html", tmp_path / "c.html",
        "--png", tmp_path / "c.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    comparison = json.loads((tmp_path / "c").read_text())
    first, second = comparison["contrasts"]
    # Of 256 sign patterns, 9 sums are at least 3 and 9 at most -3; with Holm, twice as much.
    assert first["test"]["p_randomisation"] == pytest.approx(18 / 256)
    assert first["p_holm"] == pytest.approx(36 / 256)
    assert first["test"]["mean_difference"] == pytest.approx(0.375)
    assert (second["system"], second["test"]["p_randomisation"]) == ("task (2)", 1.0)
    assert comparison["largest_changes"]["task"]["lost"] == [
        {"query": "q07", "value": -0.5, "baseline": 0.0}
    ]
    assert "+0.3750" in result.output
    assert "0.0703" in result.output
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "<code>q07</code>" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "plants"}, "the same data, got 'animals' for 'a' and 'plants' for 'b'"),
        ({"split": "dev"}, "the same split, got 'test' for 'a' and 'dev' for 'b'"),
        ({"protocol": "nq"}, "the same protocol, got"),
        ({"judgements_fingerprint": "k"}, "evaluated with different judgements of 'animals'"),
        (
            {"details": {"data_fingerprint": "k"}},
            "evaluated on different contents of 'animals'",
        ),
        ({"measures": {"P@1": 1.0}}, "the reports have no measure in common"),
        (
            {"per_query": {"nDCG@10": {"q00": 0.0, "q77": 1.0}}},
            "have different queries for nDCG@10: 1 only in the first, 1 only in the second",
        ),
    ],
)
def test_compare_refuses_reports_that_do_not_belong_together(tmp_path, changes, message):
    one = _report(tmp_path / "a.json", "a", [0.0, 1.0])
    two = _report(tmp_path / "b.json", "b", [0.0, 1.0], **changes)
    result = _invoke(one, two)
    assert isinstance(result.exception, EvaluationError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ({"keep_identical": True}, {"keep_identical": False}, "once with and once without --keep"),
        ({"depth": 100}, {"depth": 5}, "the same depth for nDCG@10, got 100 for 'a' and 5 for"),
        ({"depth": 100}, {"depth": 10}, None),
        ({"depth": 100}, {"depth": None}, None),
        ({"keep_identical": True}, {}, None),
    ],
)
def test_compare_refuses_rankings_made_under_other_conditions(tmp_path, one, two, message):
    paths = [
        _report(tmp_path / name, name, [0.0, 1.0], details={"data_fingerprint": "d", **more})
        for name, more in (("a", one), ("b", two))
    ]
    result = _invoke(*paths)
    assert (result.exception is None) is (message is None)
    assert message is None or message in str(result.exception)


def test_compare_refuses_one_report_and_unknown_measures(tmp_path):
    one = _report(tmp_path / "a.json", "a", [0.0, 1.0])
    assert "at least two reports" in str(_invoke(one).exception)
    assert "expected measures from nDCG@10, got RR@10" in str(
        _invoke(one, one, "--measure", "RR@10").exception
    )


def test_compare_takes_reports_that_do_not_say_what_their_data_were(tmp_path):
    one = _report(tmp_path / "a.json", "a", [0.0, 1.0])
    two = _report(tmp_path / "b.json", "b", [0.0, 1.0], details={})

    result = _invoke(one, two)

    assert result.exit_code == 0, result.output
