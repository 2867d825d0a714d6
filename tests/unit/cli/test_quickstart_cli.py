import json

from typer.testing import CliRunner

from dptdr.cli import quickstart
from dptdr.cli.app import build_app
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny


def test_quickstart_goes_through_all_stages(tmp_path, monkeypatch):
    """The real stages on a tiny encoder; building the sample tasks has tests of its own."""
    monkeypatch.setattr(quickstart, "TASKS", ("tiny",))
    tiny_data(tmp_path / "out" / "data" / "tiny")
    backbone = save_tiny(tmp_path / "backbone")
    figures = tmp_path / "figures.json"
    arguments = ["quickstart", "--out", tmp_path / "out", "--backbone", backbone, "--steps", "3"]
    done = CliRunner().invoke(
        build_app(),
        list(map(str, [*arguments, "--passages", "12", "--json", figures])),
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    (row,) = json.loads(figures.read_text(encoding="utf-8"))["tasks"]
    assert row["passages"] == 12
    assert row["queries"] == 6
    assert 0.0 <= row["p"] <= 1.0
    assert {"BM25", "backbone", "prompt", "bundle_bytes", "seconds"} <= set(row)
    for word in ("task", "passages", "BM25", "backbone", "prompt", "bundle", "query"):
        assert word in done.stdout
    assert (tmp_path / "out" / "tasks" / "tiny" / "task.json").is_file()
    shown = ["search", tmp_path / "out" / "indexes" / "tiny", "a word"]
    searched = CliRunner().invoke(
        build_app(),
        list(map(str, [*shown, "--task", tmp_path / "out" / "tasks" / "tiny"])),
        catch_exceptions=False,
    )
    assert searched.exit_code == 0
    assert "p" in searched.stdout
    reports = tmp_path / "out" / "reports"
    compared = CliRunner().invoke(
        build_app(),
        ["compare", *(str(reports / f"tiny-{s}.json") for s in ("backbone", "prompt", "bm25"))],
        catch_exceptions=False,
    )
    assert compared.exit_code == 0
    assert "bm25" in compared.stdout
