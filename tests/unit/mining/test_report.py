"""Reports of minings."""

import json

import pytest

from dptdr.mining.report import (
    mining_report,
    mining_tables,
    quantiles,
    rank_labels,
    write_mining_report,
)
from dptdr.mining.settings import MiningSettings, SourceSettings
from dptdr.mining.statistics import SourceCounts, Statistics, rank_bucket


@pytest.fixture
def report():
    statistics = Statistics(
        queries=2,
        negatives=5,
        sources={
            "bm25": SourceCounts(
                queries=2, candidates=9, blocked=2, dropped={"absolute_margin": 3},
                negatives=4, alone=2, above_positive=1, with_positive=4,
                ranks=[1, 3, 0, 0, 0, 0, 0, 0],
            ),
            "own": SourceCounts(queries=2, candidates=4, negatives=3, alone=1),
        },
        overlap={"bm25|own": 2},
    )  # fmt: skip
    for number in range(5):
        statistics.negative_characters.offer(str(number), lambda number=number: 10 * number)
        statistics.teacher.offer(str(number), lambda number=number: [number / 10, 0.9])
        statistics.offer_source_score("bm25", number, (3.0 + number, 10.0 if number else 0.0))
    statistics.examples.offer(
        "x",
        lambda: {
            "query_id": "q", "query": "what\nis", "positive": "good", "dropped_id": "p7",
            "dropped": "as good", "teacher": 0.8, "positive_teacher": 0.9,
            "reason": "absolute_margin", "sources": {"bm25": 3},
        },
    )  # fmt: skip
    sources = tuple(SourceSettings(name=name, kind="run", value=name) for name in ("bm25", "own"))
    return mining_report(statistics, MiningSettings(sources=sources), teacher="judge")


def test_report_counts_overlap_dropped_and_hardness(report):
    assert report["negatives_per_query"] == 2.5
    assert report["overlap"] == [{"sources": ["bm25", "own"], "shared": 2, "jaccard": 2 / 5}]
    assert report["dropped"]["bm25"] == {"total": 3, "absolute_margin": 3}
    assert report["hardness"]["above_positive"] == {"bm25": 0.25, "own": None}
    assert report["hardness"]["teacher_margin"]["p50"] == pytest.approx(0.7)
    assert report["hardness"]["teacher_share"]["p50"] == pytest.approx(0.2 / 0.9)
    # A positive's score of 0 has no share.
    assert report["hardness"]["source_share"]["bm25"]["p50"] == pytest.approx(0.55)
    assert report["hardness"]["source_share"]["own"] is None
    assert report["characters"]["negatives"]["mean"] == 20.0
    assert report["characters"]["positives"] is None
    assert json.loads(json.dumps(report)) == report


def test_tables_hold_the_numbers(report):
    text = mining_tables(report)
    assert "5 negatives for 2 queries, 2.5 each" in text
    assert "| bm25 and own |      2 |        40.0% |" in text
    assert "25.0%" in text
    assert "| score by the positive's, bm25 |" in text


def test_files_hold_examples_to_read_and_the_same_plot_each_time(report, tmp_path):
    write_mining_report(tmp_path / "a", report)
    write_mining_report(tmp_path / "b", report)
    text = (tmp_path / "a" / "report.md").read_text()
    assert "- query q: what is" in text
    assert "dropped p7 (0.8, absolute_margin; bm25 rank 3): as good" in text
    assert (tmp_path / "a" / "report.png").read_bytes() == (
        tmp_path / "b" / "report.png"
    ).read_bytes()


def test_rank_labels_and_buckets_fit_together():
    labels = rank_labels((1, 10, 20))
    assert labels == ["1", "2-10", "11-20", "21+"]
    assert [rank_bucket(rank) for rank in (1, 2, 10, 11, 500, 501)] == [0, 1, 1, 2, 6, 7]


def test_quantiles_of_nothing_are_none():
    assert quantiles([]) is None
    assert quantiles([2.0])["p95"] == 2.0
