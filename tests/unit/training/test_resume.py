import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    "method", ["deep-prompt", "full", pytest.param("lora", marks=pytest.mark.learning)]
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
        "seconds_between_states": 0.0,
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
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 2
    result = train(settings, tmp_path / "whole" / "task")
    assert result is not None
    files = sorted(file.name for file in (tmp_path / "whole" / "task").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "killed" / "task").iterdir())
    for name in files:
        whole = (tmp_path / "whole" / "task" / name).read_bytes()
        assert (tmp_path / "killed" / "task" / name).read_bytes() == whole, name
