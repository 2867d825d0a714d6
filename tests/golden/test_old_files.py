"""Files that version 0.1.0 wrote stay readable.

Made by the commands in ``old_files/made_by.txt`` with the code of commit c940088.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dptdr.errors import BundleError, OutputError
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

OLD = Path(__file__).parent / "old_files"
QUERIES = ["river stone", "music"]
VECTORS = [[0.640467, 1.009375, -0.623450, -0.994227], [0.543317, 0.470675, -0.710850, -0.984413]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from dptdr.model import Backbone

    return Backbone.load(str(save_tiny(tmp_path_factory.mktemp("backbone") / "bert")))


@pytest.fixture
def data(tmp_path):
    return tiny_data(tmp_path / "data")


def test_a_task_gives_the_same_vectors(backbone):
    from dptdr.model import load_task, read_manifest

    task = load_task(OLD / "task", backbone=backbone)
    assert task.encode_queries(QUERIES)[:, :4] == pytest.approx(np.array(VECTORS), abs=1e-5)
    manifest = read_manifest(OLD / "task")
    assert task.query_fingerprint == manifest.query_fingerprint
    assert task.passage_fingerprint == manifest.passage_fingerprint


def test_a_prompt_with_a_softmax_of_its_own_is_refused(backbone, tmp_path):
    from dptdr.model import load_task

    shutil.copytree(OLD / "task", tmp_path / "task")
    file = tmp_path / "task" / "task.json"
    file.write_text(file.read_text().replace('"attention": "joint"', '"attention": "added"'))
    with pytest.raises(BundleError, match=r"attention: expected 'joint', got 'added'; such"):
        load_task(tmp_path / "task", backbone=backbone)


def test_a_vector_folder_is_read_and_found_complete(backbone, data, tmp_path, capsys):
    from dptdr.model import load_task
    from dptdr.search.vectors.documents import read_documents, source_of
    from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
    from dptdr.search.vectors.folder import VectorFolder

    out = Path(shutil.copytree(OLD / "vectors", tmp_path / "vectors"))
    folder = VectorFolder(out)
    folder.verify()
    assert (folder.count, list(folder.all_ids())[:2]) == (30, ["p0", "p1"])
    task = load_task(OLD / "task", backbone=backbone)
    given = {"out": out, "source": source_of(data)}
    again = encode_folder(
        task, read_documents(data), settings=EncodeSettings(dtype="float16"), **given
    )
    assert again.manifest == folder.manifest
    assert "vectors: complete, nothing to do" in capsys.readouterr().err
    with pytest.raises(OutputError, match="dtype: was 'float16', is 'float32'"):
        encode_folder(task, read_documents(data), **given)


def test_negatives_are_read_for_training(data):
    from dptdr.data.training_files import GroupFile
    from dptdr.io.beir import BeirFolder

    groups = list(GroupFile(OLD / "negatives.jsonl", folder=BeirFolder(data)))
    assert len(groups) == 24
    assert groups[1].positives == ("green boat and boat",)


def test_a_task_can_be_written_again_from_the_checkpoints_of_its_run(backbone, tmp_path):
    from dptdr.training.checkpoint_selection import write_bundle

    write_bundle(OLD / "task.training", tmp_path / "task", backbone=backbone)
    weights = "task/prompt.safetensors"
    assert (tmp_path / weights).read_bytes() == (OLD / weights).read_bytes()


def test_a_run_whose_settings_have_their_former_names_is_reported(tmp_path):
    from dptdr.training.report import write_report

    write_report(OLD / "task.training", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<tr><th>steps</th><td>4 of 4</td></tr>" in page
    assert "<tr><th>clip_norm</th><td>1.0</td></tr>" in page


def test_a_task_is_not_replaced_by_a_training_that_does_not_know_its_settings(
    backbone, data, tmp_path
):
    from dptdr.config.methods import config_from
    from dptdr.config.training import TrainingConfig
    from dptdr.io.beir import BeirFolder
    from dptdr.training.preparation import load_data
    from dptdr.training.train import train_task

    shutil.copytree(OLD / "task", tmp_path / "task")
    name, method = config_from("deep-prompt", {"prompt_length": 2})
    config = TrainingConfig(max_steps=4, batch_size=4, eval_steps=4.0, dev_passages=10)
    with pytest.raises(OutputError, match="already exists, and its settings are unknown"):
        train_task(
            load_data(BeirFolder(data), config),
            tmp_path / "task",
            backbone=backbone,
            method_name=name,
            method_config=method,
            config=config,
        )
    old, new = OLD / "task" / "task.json", tmp_path / "task" / "task.json"
    assert new.read_bytes() == old.read_bytes()
