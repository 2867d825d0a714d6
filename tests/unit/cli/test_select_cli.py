import json
import shutil

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import ConfigError, TrainingError
from dptdr.training.loop import DEV_NOISE
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny


def dptdr(*arguments):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    tiny_data(folder / "data")
    save_tiny(folder / "bert")
    small = ["--steps", 6, "--evaluations", 3, "--batch-size", 4, "--dev-passages", 10]
    train = ["train", folder / "data", "--backbone", folder / "bert", "--out", folder / "task"]
    dptdr(*train, *small, "--method", "bitfit")
    return folder


def select(world, *arguments, data=None):
    run = [world / "task.training", "--data", data or world / "data", "--backbone", world / "bert"]
    return dptdr("select", *run, *arguments)


def test_checkpoints_are_measured_and_chosen_by_another_measure(tmp_path, world):
    done = select(world, "--measure", "R@2", "--measure", "RR@10", "--json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert sorted(found["dev"]) == ["2", "4", "6"]
    by_measure = {int(step): taken["R@2"] for step, taken in found["dev"].items()}
    highest = max(by_measure.values())
    assert found["best_step"] == max(s for s, v in by_measure.items() if v >= highest - DEV_NOISE)
    chosen = [line for line in done.stdout.splitlines() if line.endswith("chosen")]
    assert [int(line.split()[0]) for line in chosen] == [found["best_step"]]
    # The dev set is the run's own: the measure that was taken while training comes out again.
    log = (world / "task.training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first = [r for r in map(json.loads, log) if r["kind"] == "dev"][:3]
    for record in first:
        assert found["dev"][str(record["step"])]["RR@10"] == pytest.approx(record["RR@10"])


def test_a_chosen_step_becomes_a_bundle(tmp_path, world):
    select(world, "--measure", "R@2", "--step", 2, "--out", tmp_path / "task")
    manifest = json.loads((tmp_path / "task" / "task.json").read_text(encoding="utf-8"))
    assert manifest["training"]["best_step"] == 2
    for taken in (tmp_path / "task", world / "task.training" / "chosen"):
        with pytest.raises(ConfigError, match="expected a new folder outside the run"):
            select(world, "--measure", "R@2", "--step", 2, "--out", taken)


def test_other_data_than_the_runs_is_refused_with_both_fingerprints(tmp_path, world):
    shutil.copytree(world / "data", tmp_path / "data")
    with (tmp_path / "data" / "corpus.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"_id": "more", "title": "", "text": "another passage"}\n')
    with pytest.raises(TrainingError, match="expected the run's data with fingerprint"):
        select(world, "--measure", "R@2", data=tmp_path / "data")


def test_a_step_without_checkpoint_is_refused_with_those_there_are(tmp_path, world):
    with pytest.raises(TrainingError, match="no checkpoint for step 3; available: 2, 4, 6"):
        select(world, "--measure", "R@2", "--step", 3, "--out", tmp_path / "task")
    with pytest.raises(TrainingError, match="no checkpoint for step 99"):
        select(world, "--measure", "R@2", "--step", 99)
