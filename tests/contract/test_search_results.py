"""Pages of figures are what their scripts make of the records beside them."""

import argparse
import importlib
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    known = set(sys.modules)
    yield importlib.import_module
    # Their names are common words: other tests must not import them by mistake.
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["search", "encoding", "compression", "hybrid"])
def test_the_page_is_made_of_the_records(script, name, tmp_path):
    records = tmp_path / f"{name}.jsonl"
    shutil.copy(ROOT / "results" / f"{name}.jsonl", records)
    plot = tmp_path / "plot.png"
    script(name).table(argparse.Namespace(json=records, plot=plot))
    page = (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert records.with_suffix(".md").read_text(encoding="utf-8") == page
    assert plot.exists() == (name == "compression")


def test_the_scale_page_is_computed_from_the_measured_figures(script):
    lines = script("scale").page(argparse.Namespace(price=0.04))
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(lines) + "\n" == page


def test_times_at_scale_follow_from_measured_ones(script):
    scale = script("scale")
    records = [
        {"mean_tokens": 10.0, "per_second": {"ours": 100.0}},
        {"mean_tokens": 30.0, "per_second": {"ours": 20.0}},
    ]
    assert scale.tokens_per_second(records, "ours", 5.0) == 1000.0
    assert scale.tokens_per_second(records, "ours", 20.0) == 800.0
    assert scale.tokens_per_second(records, "ours", 90.0) == 600.0
    graph = {"kind": "hnsw", "rows": 1000, "build_seconds": 2.0, "threads": 2}
    assert scale.build_core_seconds(graph, 1_000_000) == pytest.approx(4 * 1000 * 2)
    lists = {"kind": "ivf-sq", "rows": 100, "build_seconds": 2.0, "threads": 1}
    assert scale.build_core_seconds(lists, 10_000) == pytest.approx(2000)
    assert scale.duration(90 * 60) == "1.5 hours"
    assert scale.size(2.5e12) == "2.5 TB"
