import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.cli.commands import options_of, run_command
from dptdr.errors import ConfigError, DataError
from helpers.tasks import tiny_data

RECIPE = """
name = "small"
about = "BM25 alone"
[stages.cut]
do = "cap"
data = "data"
queries = ["train=5", "test=4"]
passages = 12
[stages.words]
do = "evaluate"
data = "@cut"
bm25 = true
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_data(tmp_path / "data")
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(build_app(), ["run", *map(str, arguments)])


def test_dry_run_prints_plan_and_commands_and_does_nothing(recipe, tmp_path):
    done = run(recipe, "--dry-run", "--json", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    assert "small: BM25 alone" in done.output
    assert "2 of 2 stages to do" in done.output
    assert "cut: dptdr data cap data --queries train=5 --queries test=4" in done.output
    assert not (tmp_path / "runs").exists()
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert next(stage["what"] for stage in plan["stages"]) == "12 passages, 9 queries"


def test_recipe_runs_and_is_not_repeated(recipe, tmp_path):
    first = run(recipe, "--work", tmp_path / "w")
    assert first.exit_code == 0, first.output
    assert "small: 2 stages done now, 0 done before" in first.output
    second = run(recipe, "--work", tmp_path / "w", "--json", tmp_path / "plan.json")
    assert "small: 0 stages done now, 2 done before" in second.output
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert {stage["state"] for stage in plan["stages"]} == {"done"}
    changed = run(recipe, "--work", tmp_path / "w", "--set", "stages.words.depth=7")
    assert "small: 1 stages done now, 1 done before" in changed.output


def test_only_a_stage_that_is_there(recipe):
    done = run(recipe, "--only", "wrods")
    assert isinstance(done.exception, ConfigError)
    assert "--only wrods: no such stage; there are cut, words" in str(done.exception)


def test_missing_recipe_is_named(tmp_path):
    done = run(tmp_path / "none.toml")
    assert isinstance(done.exception, DataError)
    assert "none.toml: no such file" in str(done.exception)


def test_options_are_read_as_the_command_line_takes_them():
    options = options_of(("train",))
    assert next(iter(options)) == "data"
    assert options["data"].words == ()
    assert options["steps"].arguments(7) == ["--steps", "7"]
    assert options["resume"].arguments(True) == ["--resume"]
    assert options["resume"].arguments(False) == []
    assert options["matryoshka"].arguments([8, 16]) == ["--matryoshka", "8", "--matryoshka", "16"]
    assert options["checkpointing"].arguments(False) == ["--no-checkpointing"]
    assert options_of(("evaluate",))["matching"].choices == ("string", "regex")
    assert options_of(("evaluate",))["depth"].problem(0) == "expected at least 1, got 0"


def test_command_in_this_process_gives_its_exit_code_and_raises_its_errors(tmp_path):
    data = tiny_data(tmp_path / "data")
    assert run_command(("data", "inspect"), [str(data)]) == 0
    with (data / "qrels" / "test.tsv").open("a", encoding="utf-8") as handle:
        handle.write("q0\tnowhere\t1\n")
    assert run_command(("data", "inspect"), [str(data)]) == 2
    with pytest.raises(DataError, match="no such folder"):
        run_command(("data", "inspect"), [str(tmp_path / "none")])
