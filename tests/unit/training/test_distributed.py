import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dptdr.errors import ConfigError
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny
from helpers.training import METHODS, gradients, made_method, relative_error

WORKER = Path(__file__).parents[2] / "helpers" / "train_worker.py"

SETTINGS = {
    "method": "deep-prompt",
    "method_settings": {"prompt_length": 4, "dropout": 0.1},
    "config": {
        "max_steps": 6,
        "eval_steps": 0.5,
        "batch_size": 7,
        "dev_passages": 20,
        "mini_batch_size": 3,
        "seed": 4,
    },
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings, the folder of two processes' results, and their output."""
    folder = tmp_path_factory.mktemp("several")
    settings = SETTINGS | {
        "data": str(tiny_data(folder / "data")),
        "backbone": str(save_tiny(folder / "bert")),
        "out": str(folder),
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(WORKER), "several", str(folder / "settings.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return settings, folder


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradient_of_two_processes_is_that_of_one(prepared, name, chunk):
    from helpers.train_worker import shared_groups

    _, folder = prepared
    loss, expected = gradients(
        made_method(name), shared_groups(), mini_batch_size=chunk or None, batch_size=7
    )
    for rank in (0, 1):
        found = load_file(folder / f"gradients-{rank}.safetensors")[f"{name} {chunk}"]
        assert float(found[-1]) == pytest.approx(loss, rel=1e-6)
        # Rounding of other batches; see test_gradcache.
        assert relative_error(found[:-1], expected) < 4e-6


def test_a_loss_that_is_no_number_in_one_process_stops_both(prepared):
    _, folder = prepared
    for rank in (0, 1):
        assert math.isnan(float(load_file(folder / f"gradients-{rank}.safetensors")["nan"]))


def test_training_of_two_processes_is_that_of_one(prepared, one_thread, tmp_path):
    from helpers.train_worker import train

    settings, folder = prepared
    one = train(settings, tmp_path / "task")
    assert one is not None
    for step in (3, 6):
        name = f"checkpoints/step-{step:07d}.safetensors"
        expected = load_file(one.run_folder / name)["shared"]
        found = load_file(folder / "task.training" / name)["shared"]
        # Adam divides by the gradient's size, so rounding of small gradients grows.
        assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    two = json.loads((folder / "task" / "task.json").read_text(encoding="utf-8"))
    assert two["training"].pop("world_size") == 2
    alone = dict(one.manifest.training)
    assert alone.pop("world_size") == 1
    assert two["training"] == alone


def test_only_the_first_process_writes_and_returns(prepared):
    _, folder = prepared
    assert (folder / "result-0").read_text(encoding="utf-8") == "False"
    assert (folder / "result-1").read_text(encoding="utf-8") == "True"
    lines = (folder / "task.training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"kind": "step"' in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_of_two_processes_is_not_resumed_by_one(prepared):
    from dptdr.errors import OutputError
    from helpers.train_worker import train

    settings, folder = prepared
    with pytest.raises(OutputError, match="world_size: was 2, is 1"):
        train(settings, folder / "task")


def test_alone_nothing_is_exchanged():
    from dptdr.training.distributed import ProcessGroup

    world = ProcessGroup()
    rows = torch.randn(3, 2, requires_grad=True)
    assert world.all_gather(rows) is rows
    assert world.gather_integers(7) == [7]
    assert world.sum_scalar(0.5) == 0.5
    assert world.broadcast_object("x") == "x"
    world.barrier()


def test_fewer_queries_than_processes_are_refused(monkeypatch, tmp_path):
    import contextlib

    from dptdr.training import train as module
    from dptdr.training.distributed import ProcessGroup
    from helpers.train_worker import train

    @contextlib.contextmanager
    def three(device):
        yield ProcessGroup(rank=0, size=3)

    monkeypatch.setattr(module, "process_group", three)
    settings = SETTINGS | {
        "data": str(tiny_data(tmp_path / "data")),
        "backbone": str(save_tiny(tmp_path / "bert")),
        "config": SETTINGS["config"] | {"batch_size": 2},
    }
    with pytest.raises(ConfigError, match=r"at least one query per process \(3\), got 2"):
        train(settings, tmp_path / "task")


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    from dptdr.training.distributed import local_device

    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert local_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device(torch.device("cuda")) == torch.device("cuda")
