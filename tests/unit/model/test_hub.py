"""Tasks on a hub: what is pushed can be loaded elsewhere by its name."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

import dptdr
from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BundleError
from dptdr.model import Backbone, Encoder, MethodFactory, save_task
from helpers.hub import fake_hub
from helpers.tiny import save_tiny

# huggingface_hub reads its settings when it is imported, so that the other machine is a process.
PUSH_AND_LOAD = """
import sys
from pathlib import Path
import numpy as np
import dptdr
task, backbone, out = sys.argv[1:]
there = dptdr.load(task, device="cpu")
url = there.push_to_hub(
    "org/tiny-task", base_model="org/tiny", license_name="apache-2.0", private=True
)
print(url)
from dptdr.errors import DptdrError
for missing in ("org/nothing", "org/no-task"):
    try:
        dptdr.load(missing, device="cpu")
    except DptdrError as error:
        print(error)
found = dptdr.load("org/tiny-task", device="cpu", backbone=backbone)
assert "org--tiny-task" in str(found.path), found.path
np.save(out, found.encode_queries(["red car", "who"]))
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    method = MethodFactory().build(
        "deep-prompt", backbone, DeepPromptConfig(prompt_length=3), seed=0
    )
    save_task(
        folder / "task",
        Encoder(backbone, method=method),
        training={"data": "fiqa"},
        measures={"dev nDCG@10": 0.375, "bare backbone dev nDCG@10": 0.25},
    )
    return folder


def test_a_pushed_task_loads_by_its_name(task, tmp_path):
    with fake_hub() as hub:
        hub.repositories["org/no-task"] = {"config.json": b"{}"}
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        arguments = [str(task / "task"), str(task / "tiny"), str(tmp_path / "vectors.npy")]
        ended = subprocess.run(
            [sys.executable, "-c", PUSH_AND_LOAD, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        files = hub.repositories["org/tiny-task"]
        private = hub.private["org/tiny-task"]

    url, nothing, no_task = ended.stdout.splitlines()
    assert url.startswith(f"{hub.address}/org/tiny-task/commit/")
    assert "cannot load backbone 'org/nothing'" in nothing
    assert "cannot load backbone 'org/no-task'" in no_task
    assert private
    ours = dptdr.load(task / "task", device="cpu").encode_queries(["red car", "who"])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), ours, atol=1e-6)
    assert json.loads(files["task.json"])["backbone"] == "org/tiny"
    # Nothing of this machine is published.
    assert not any(str(task).encode() in content for content in files.values())
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert head["library_name"] == "dptdr"
    assert head["base_model"] == "org/tiny"
    assert head["license"] == "apache-2.0"
    assert head["metrics"] == ["nDCG@10"]
    assert "sentence-transformers" in head["tags"]
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "fiqa"
    assert result["metrics"][0]["value"] == 0.375


def test_pushing_a_task_on_a_local_backbone_asks_for_its_name(task):
    with pytest.raises(BundleError, match="pass base_model='org/name'"):
        dptdr.load(task / "task", device="cpu").push_to_hub("org/tiny-task")
