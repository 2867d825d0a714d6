import json

import pytest

from dptdr.errors import ConfigError, DataError
from dptdr.evaluation.report import EvaluationReport
from dptdr.recipes.running import copy_tables, run_plan
from dptdr.recipes.store import locked

TEXT = """
[stages.a]
do = "train"
data = "DATA"
[stages.b]
do = "evaluate"
data = "DATA"
task = "@a"
[stages.c]
do = "evaluate"
data = "DATA"
bm25 = true
[stages.t]
do = "table"
title = "Both"
measures = ["M"]
columns = ["tiny"]
baseline = "bm25"
rows = [{ system = "bm25", report = "@c" }, { system = "a", report = "@b" }]
"""


class Fake:
    """Stands for the commands: writes what they would leave, and remembers what it was asked."""

    def __init__(self, *, fail_at=None):
        self.asked = []
        self.fail_at = fail_at

    def __call__(self, planned):
        self.asked.append(planned.stage.name)
        if planned.stage.name == self.fail_at:
            raise KeyboardInterrupt
        output = planned.place.output
        if planned.stage.do == "train":
            output.mkdir()
            (output / "task.json").write_text("{}")
            return
        values = {"q0": 0.5, "q1": 1.0} if planned.stage.name == "b" else {"q0": 0.0, "q1": 0.5}
        EvaluationReport(
            system=planned.stage.name,
            data="tiny",
            split="test",
            judgements_fingerprint="x",
            protocol="ir_measures",
            measures={"M": sum(values.values()) / 2},
            per_query={"M": values},
            queries=2,
        ).write(output)


def quiet(_):
    pass


def test_what_is_done_is_not_done_again(plan, data):
    run = Fake()
    assert run_plan(plan(TEXT), run=run, tell=quiet) == (4, 0)
    assert run.asked == ["a", "b", "c"]
    assert run_plan(plan(TEXT), run=run, tell=quiet) == (0, 4)
    assert run.asked == ["a", "b", "c"]


def test_interrupted_run_goes_on_where_it_was(plan, data):
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(TEXT), run=Fake(fail_at="b"), tell=quiet)
    states = {item.stage.name: item.state for item in plan(TEXT).stages}
    assert states == {"a": "done", "b": "started", "c": "to do", "t": "to do"}
    run = Fake()
    assert run_plan(plan(TEXT), run=run, tell=quiet) == (3, 1)
    assert run.asked == ["b", "c"]


def test_changed_or_lost_output_is_made_again(plan, data):
    run_plan(plan(TEXT), run=Fake(), tell=quiet)
    places = {item.stage.name: item.place for item in plan(TEXT).stages}
    (places["a"].output / "task.json").unlink()
    places["c"].output.write_text("cut short")
    (places["a"].output).rmdir()
    run = Fake()
    run_plan(plan(TEXT), run=run, tell=quiet)
    assert run.asked == ["a", "c"]


def test_changed_setting_does_only_what_depends_on_it(plan, data):
    run_plan(plan(TEXT), run=Fake(), tell=quiet)
    run = Fake()
    assert run_plan(plan(TEXT, "stages.a.steps=3"), run=run, tell=quiet) == (3, 1)
    assert run.asked == ["a", "b"]
    again = Fake()
    assert run_plan(plan(TEXT), run=again, tell=quiet) == (0, 4)


def test_stage_without_output_is_an_error_and_not_done(plan, data):
    with pytest.raises(DataError, match="without its output"):
        run_plan(plan(TEXT), run=lambda planned: None, tell=quiet)
    assert {item.state for item in plan(TEXT).stages} == {"started", "to do"}


def test_missing_files_stop_everything_before_it_starts(plan, tmp_path):
    run = Fake()
    with pytest.raises(ConfigError, match="nothing was started"):
        run_plan(plan(TEXT), run=run, tell=quiet)
    assert run.asked == []
    assert not (tmp_path / "work").exists()


def test_two_runs_do_not_work_in_one_folder(plan, data, tmp_path):
    with locked(tmp_path / "work"), pytest.raises(ConfigError, match="another `dptdr run`"):
        run_plan(plan(TEXT), run=Fake(), tell=quiet)


def test_table_shows_systems_by_data_sets_with_the_test_against_the_baseline(plan, data, tmp_path):
    found = plan(TEXT)
    run_plan(found, run=Fake(), tell=quiet)
    (page,) = copy_tables(found, tmp_path / "tables")
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# Both", "", "| method | tiny M |"]
    assert "| bm25 | 0.250 |" in lines
    # Two queries, both better by 0.5: 2 of 4 sign patterns are as far apart.
    assert "| a | 0.750 (0.500) |" in lines
    cells = json.loads((tmp_path / "tables" / "t.json").read_text())["cells"]
    assert [cell["seeds"] for cell in cells] == [1, 1]


def test_stages_are_found_by_their_names(plan, data, tmp_path):
    run_plan(plan(TEXT), run=Fake(), tell=quiet)
    assert (tmp_path / "work" / "stages" / "a" / "task" / "task.json").is_file()
    record = json.loads((tmp_path / "work" / "stages" / "a" / "stage.json").read_text())
    assert record["do"] == "train"
    assert record["command"].startswith("dptdr train")
