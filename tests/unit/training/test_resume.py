import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from dptdr.errors import OutputError
from dptdr.io.resume import claim
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

WORKER = Path(__file__).parents[2] / "helpers" / "train_worker.py"

CASES = {
    "deep-prompt": {
        "method_settings": {"prompt_length": 4, "dropout": 0.1, "reparametrisation": 6},
        "config": {"max_grad_norm": 0.5},
    },
    "lora": {"method_settings": {"rank": 2, "dropout": 0.2}, "config": {"mini_batch_size": 5}},
    "full": {"method_settings": {}, "config": {"weight_decay": 0.01}},
}


@pytest.mark.parametrize(
    "method",
    [
        "deep-prompt",
        pytest.param("full", marks=pytest.mark.learning),
        pytest.param("lora", marks=pytest.mark.learning),
    ],
)
def test_killed_and_resumed_training_ends_at_the_same_bytes(one_thread, tmp_path, method):
    from helpers.train_worker import train

    config = {"max_steps": 10, "eval_steps": 0.5, "batch_size": 4, "dev_passages": 20, "seed": 1}
    settings = {
        "method": method,
        "method_settings": CASES[method]["method_settings"],
        "config": config | CASES[method]["config"],
        "data": str(tiny_data(tmp_path / "data")),
        "backbone": str(save_tiny(tmp_path / "bert")),
        "out": str(tmp_path / "killed" / "task"),
        "kills": 3,
        "kill_seed": len(method),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(WORKER), "kill", str(tmp_path / "settings.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == 3
    result = train(settings, tmp_path / "whole" / "task")
    assert result is not None
    files = sorted(file.name for file in (tmp_path / "whole" / "task").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "killed" / "task").iterdir())
    for name in files:
        whole = (tmp_path / "whole" / "task" / name).read_bytes()
        assert (tmp_path / "killed" / "task" / name).read_bytes() == whole, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings of a run, and the folder with its finished task."""
    folder = tmp_path_factory.mktemp("finished")
    config = {"max_steps": 4, "eval_steps": 2.0, "batch_size": 4, "dev_passages": 20}
    settings = {
        "method": "deep-prompt",
        "method_settings": {"prompt_length": 4},
        "config": config,
        "data": str(tiny_data(folder / "data")),
        "backbone": str(save_tiny(folder / "bert")),
    }
    from helpers.train_worker import train

    return settings, folder, train(settings, folder / "task")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("task", "task.training")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def test_a_finished_task_is_returned_at_once_and_not_written_again(finished, capsys):
    from helpers.train_worker import train

    settings, folder, first = finished
    before = contents(folder)
    steps = []
    again = train(settings, folder / "task", progress=steps.append)
    assert again == first
    assert steps == []
    assert contents(folder) == before
    assert capsys.readouterr().err == f"{folder / 'task'}: complete, nothing to do\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"temperature": 0.1}}, r"temperature: was 0\.05, is 0\.1"),
        ({"method_settings": {"prompt_length": 5}}, r"method_settings\.prompt_length: was 4, is 5"),
        ({"method": "bitfit", "method_settings": {}}, "method: was 'deep-prompt', is 'bitfit'"),
    ],
)
def test_a_task_is_not_replaced_by_one_of_other_settings(finished, changes, words):
    from helpers.train_worker import train

    settings, folder, _ = finished
    before = contents(folder)
    other = settings | changes | {"config": settings["config"] | changes.get("config", {})}
    with pytest.raises(OutputError, match=rf"cannot resume: these settings differ .*{words}"):
        train(other, folder / "task")
    assert contents(folder) == before


def test_another_prompt_to_start_from_is_another_setting(finished, tmp_path):
    import torch

    from helpers.train_worker import train

    settings, _, first = finished
    settings = settings | {"method_settings": {"prompt_length": 4, "initialisation": "task"}}
    rows = safetensors.torch.load_file(first.run_folder / "checkpoints/step-0000002.safetensors")
    train(settings, tmp_path / "task", start_rows=rows)
    with pytest.raises(OutputError, match=r"start_rows: was '[0-9a-f]+\.\.\., is '"):
        train(
            settings,
            tmp_path / "task",
            start_rows={name: torch.zeros_like(row) for name, row in rows.items()},
        )


def test_overwriting_keeps_the_old_task_until_the_new_one_is_complete(finished, tmp_path):
    from helpers.train_worker import train

    settings, folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    out = tmp_path / "copy" / "task"
    other = settings | {"config": settings["config"] | {"seed": 5}}

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(other, out, overwrite=True, progress=interrupt)
    old = contents(folder)["task/task.json"]
    assert contents(tmp_path / "copy")["task/task.json"] == old
    result = train(other, out)
    assert result is not None
    assert result.manifest.training["seed"] == 5
    assert json.loads((out / "task.json").read_text(encoding="utf-8"))["training"]["seed"] == 5


@pytest.mark.parametrize("added", ["notes.md", "last/notes.md", "own/step-0000004.safetensors"])
def test_overwriting_does_not_delete_what_somebody_put_beside_the_checkpoints(
    finished, tmp_path, added
):
    from helpers.train_worker import train

    settings, folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    notes = tmp_path / "copy" / "task.training" / added
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("what we learned", encoding="utf-8")
    with pytest.raises(OutputError, match=rf"training: contains files .*lost \({added}\)"):
        train(settings, tmp_path / "copy" / "task", overwrite=True)
    assert notes.exists()


def test_a_run_of_an_earlier_version_is_continued(finished, tmp_path):
    # Before outputs had records, the settings were in the run's folder alone.
    from helpers.train_worker import train

    settings, folder, first = finished
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / ".task.made.json").unlink()
    again = train(settings, tmp_path / "copy" / "task")
    assert again is not None
    assert again.manifest == first.manifest
    shutil.rmtree(tmp_path / "copy" / "task.training")
    (tmp_path / "copy" / ".task.made.json").unlink()
    with pytest.raises(OutputError, match="already exists, and its settings are unknown"):
        train(settings, tmp_path / "copy" / "task")


def test_a_second_training_into_one_folder_is_refused(finished, tmp_path):
    from helpers.train_worker import train

    settings, _, _ = finished
    with (
        claim(tmp_path / "task", mark="task.json"),
        pytest.raises(OutputError, match=rf"being written by process {os.getpid()} on"),
    ):
        train(settings, tmp_path / "task")


def test_a_full_disk_while_training_is_one_error_that_names_the_file(finished, tmp_path):
    from helpers.train_worker import train

    settings, _, _ = finished

    def fill(progress):
        # A folder in the place of the next checkpoint cannot be overwritten by a file.
        (tmp_path / "task.training/checkpoints/step-0000002.safetensors").mkdir(parents=True)

    words = r"step-0000002.safetensors: cannot be written \(Is a directory"
    with pytest.raises(OutputError, match=words):
        train(settings, tmp_path / "task", progress=lambda p: fill(p) if p.step == 1 else None)
