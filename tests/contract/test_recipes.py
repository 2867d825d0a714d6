"""Shipped recipes parse, plan and say what they cost; a small one runs, is killed, and goes on."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from dptdr.cli.app import build_app
from dptdr.cli.commands import options_of
from dptdr.recipes.planning import make_plan
from dptdr.recipes.reading import read_recipe
from dptdr.recipes.report import cost_lines
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def planned_of(recipe, *changes):
    read = read_recipe(recipe, options_of=options_of, changes=changes, work=Path("no-such-work"))
    return make_plan(read, options_of=options_of)


def test_the_papers_recipes_are_there():
    assert {"ablation", "msmarco", "nq"} <= {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_dry_run_plans_every_stage_without_torch(recipe, tmp_path):
    code = (
        "import sys; from dptdr.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'faiss'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(recipe), "--dry-run", "--json", "plan.json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    for stage in plan["stages"]:
        assert f"  {stage['name']}: {stage['command']}" in done.stdout
        assert stage["state"] == "to do"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.json"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_recipe_parses(recipe):
    root = get_command(build_app())
    for stage in planned_of(recipe).stages:
        if not stage.words:
            continue
        command = root
        for word in stage.words:
            command = command.commands[word]
        command.make_context("dptdr", list(stage.arguments))


@pytest.mark.parametrize("name", ["msmarco", "nq"])
def test_costs_in_the_comment_are_those_of_the_plan(name):
    recipe = ROOT / "recipes" / f"{name}.toml"
    lines = cost_lines(*(planned_of(recipe, f"machine.processes={count}") for count in (8, 1)))
    comment = [
        line.removeprefix("#   ").rstrip() for line in recipe.read_text("utf-8").splitlines()
    ]
    assert [line for line in lines if line not in comment] == []


def test_authors_settings_are_the_defaults():
    marco = read_recipe(ROOT / "recipes" / "msmarco.toml", options_of=options_of).stage("unm")
    wanted = {
        "prompt_length": 128,
        "learning_rate": 7e-3,
        "batch_size": 8 * 8,
        "negatives_per_query": 29,
        "sharing": "tied",
        "max_query_tokens": 32,
        "max_passage_tokens": 128,
        "steps": round(10 * 502_939 / 64),
    }
    assert wanted.items() <= marco.settings.items()
    questions = read_recipe(ROOT / "recipes" / "nq.toml", options_of=options_of).stage("unm")
    wanted = {
        "prompt_length": 32,
        "learning_rate": 7e-3,
        "batch_size": 8 * 16,
        "negatives_per_query": 1,
        "sharing": "untied",
        "steps": 60 * 58_880 // 128,
    }
    assert wanted.items() <= questions.settings.items()


PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize(
    "line",
    [line for block in blocks("sh") for line in block.splitlines() if line.startswith("dptdr ")],
)
def test_shown_command_parses(line):
    words = shlex.split(line)[1:]
    command = get_command(build_app())
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("dptdr", words)


def test_shown_recipe_is_one(tmp_path):
    (block,) = blocks("toml")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(block, encoding="utf-8")
    names = [planned.stage.name for planned in planned_of(recipe).stages]
    assert names[-1] == "compared"
    assert names.count("unm") == 1
    assert {"prompt-16", "prompt-64", "unm-mine-2"} <= set(names)


MINI = """
name = "mini"
[machine]
threads = 1
[vars]
encoder = "ENCODER"
[defaults.train]
backbone = "{encoder}"
steps = 6
batch_size = 4
evaluations = 1
dev_passages = 10
prompt_length = 2
[stages.rip]
do = "pretrain"
data = "DATA"
backbone = "{encoder}"
steps = 2
batch_size = 4
span_tokens = 20
least_span_tokens = 2
[stages.dpt]
do = "train"
data = "DATA"
[stages.unm]
do = "rounds"
rounds = 2
data = "DATA"
backbone = "@rip"
mine = { source = ["bm25,ranks=1-10,quota=3", "@current,ranks=1-10,quota=3"] }
train = {}
[stages.vectors]
do = "encode"
data = "DATA"
task = "@unm"
[stages.index]
do = "index"
vectors = "@vectors"
kind = "exact"
[stages.run]
do = "search"
index = "@index"
queries = "DATA"
task = "@unm"
[stages.eval-unm]
do = "evaluate"
data = "DATA"
run = "@run"
[stages.official]
do = "evaluate"
protocol = "msmarco"
run = "@run"
qrels = "DATA/qrels/test.tsv"
[stages.eval-dpt]
do = "evaluate"
data = "DATA"
task = "@dpt"
[stages.compared]
do = "compare"
reports = ["@eval-dpt", "@eval-unm"]
[stages.table]
do = "table"
measures = ["nDCG@10"]
columns = ["tiny"]
rows = [{ system = "DPT", report = "@eval-dpt" }, { system = "UNM", report = "@eval-unm" }]
"""


def start(recipe):
    return subprocess.Popen(
        [sys.executable, "-m", "dptdr", "run", recipe.name],
        cwd=recipe.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stamps(work):
    files = [path for path in (work / "store").rglob("*") if path.is_file()]
    return {path.relative_to(work).as_posix(): path.stat().st_mtime_ns for path in files}


def test_small_recipe_runs_is_killed_goes_on_and_redoes_nothing(tmp_path):
    tiny_data(tmp_path / "data")
    save_tiny(tmp_path / "encoder")
    text = MINI.replace("DATA", "data").replace("ENCODER", "./encoder")
    recipe = tmp_path / "mini.toml"
    recipe.write_text(text, encoding="utf-8")
    work = tmp_path / "runs" / "mini"
    killed = start(recipe)
    deadline = time.monotonic() + 120
    # Killed while the second training or its mining is on the way.
    while not (work / "stages" / "unm-mine-1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = {name: stamp for name, stamp in stamps(work).items() if "stage.json" in name}
    assert len(before) >= 3
    resumed = start(recipe)
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert re.search(rf"mini: {14 - len(before)} stages done now, {len(before)} done before", out)
    done = stamps(work)
    assert {name: done[name] for name in before} == before
    assert len(list((work / "store").glob("*/stage.json"))) == 14
    assert "| DPT |" in (work / "tables" / "table.md").read_text(encoding="utf-8")
    repeated = start(recipe)
    out, err = repeated.communicate(timeout=60)
    assert repeated.returncode == 0, err
    assert "mini: 0 stages done now, 14 done before" in out
    assert stamps(work) == done
