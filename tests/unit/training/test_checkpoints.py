"""Files of a run are read as they were written, or refused."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.errors import TrainingError
from dptdr.training.checkpoints import RunFolder
from helpers.damage import DAMAGE, damage

TENSORS = {"rows": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)}
FACTS = {"step": 2, "history": {"2": {"nDCG@10": 0.25}}}
IDENTITY = {"seed": 0, "method": "deep-prompt"}
FILES = (
    "run.json",
    "log.jsonl",
    "checkpoints/step-0000002.safetensors",
    "last/state.safetensors",
    "last/state.json",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run") / "task.training")
    folder.begin(IDENTITY)
    folder.log({"kind": "step", "step": 1, "loss": 0.5, "layer_gradient_norms": [0.1, 1e-9]})
    folder.log({"kind": "dev", "step": 2, "nDCG@10": 0.25})
    folder.save_checkpoint(2, TENSORS)
    folder.save_state(TENSORS, FACTS)
    return folder.path


def read(path):
    """Return all that a run's files tell."""
    folder = RunFolder(path)
    state = folder.load_state()
    return (
        folder.identity(),
        folder.records(),
        {name: tensor.tolist() for name, tensor in folder.load_checkpoint(2).items()},
        None if state is None else ({n: t.tolist() for n, t in state[0].items()}, state[1]),
    )


def test_what_was_written_is_read(run):
    identity, records, checkpoint, state = read(run)
    assert identity == IDENTITY
    assert records[1] == {"kind": "dev", "step": 2, "nDCG@10": 0.25}
    assert checkpoint == {name: tensor.tolist() for name, tensor in TENSORS.items()}
    assert state == (checkpoint, FACTS)


@settings(max_examples=300)
@given(file=st.sampled_from(FILES), how=st.tuples(*DAMAGE))
def test_a_damaged_file_is_refused_or_tells_the_same(run, tmp_path_factory, file, how):
    copy = tmp_path_factory.mktemp("copy") / "task.training"
    shutil.copytree(run, copy)
    whole = (copy / file).read_bytes()
    broken = damage(whole, *how)
    (copy / file).write_bytes(broken)
    try:
        found = read(copy)
    except TrainingError as error:
        assert file.rpartition("/")[2] in str(error)  # noqa: PT017 - an error is one of two
        return
    want = read(run)
    if file == "log.jsonl":
        # A line without its end is one that a killed process was writing.
        assert all(any(r.items() >= w.items() for w in want[1]) for r in found[1])
        found, want = found[:1] + found[2:], want[:1] + want[2:]
    if file == "run.json":
        # Its checksum under a damaged name: one setting more, which the next call names.
        assert found[0].items() >= want[0].items()
        found, want = found[1:], want[1:]
    assert found == want


@pytest.mark.parametrize("content", ["null", "[]", "3", '"x"', "{", ""])
@pytest.mark.parametrize("file", ["run.json", "last/state.json"])
def test_json_of_another_kind_is_refused(run, tmp_path, file, content):
    shutil.copytree(run, tmp_path / "task.training")
    (tmp_path / "task.training" / file).write_text(content)
    with pytest.raises(TrainingError, match=file.rpartition("/")[2]):
        read(tmp_path / "task.training")


def test_a_changed_measure_in_the_log_is_refused_with_its_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "task.training")
    log = tmp_path / "task.training" / "log.jsonl"
    log.write_text(log.read_text().replace("0.25", "0.99"))
    with pytest.raises(TrainingError, match=r"log.jsonl, line 2: the record is damaged"):
        RunFolder(tmp_path / "task.training").dev_history()


def test_files_of_earlier_versions_have_no_checksum_and_are_read(run, tmp_path):
    import safetensors.torch

    shutil.copytree(run, tmp_path / "task.training")
    folder = tmp_path / "task.training"
    values = json.loads((folder / "run.json").read_text())
    del values["sha256"]
    (folder / "run.json").write_text(json.dumps(values))
    safetensors.torch.save_file(TENSORS, folder / "checkpoints" / "step-0000002.safetensors")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "crc"}) + "\n" for line in lines)
    )
    assert read(folder) == read(run)


def test_a_file_of_another_step_or_run_is_not_taken_for_ones_own(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    folder = RunFolder(copy)
    folder.save_checkpoint(3, {name: tensor + 1 for name, tensor in TENSORS.items()})
    shutil.copy(folder.checkpoint_path(3), folder.checkpoint_path(2))
    with pytest.raises(TrainingError, match="of another step or run"):
        folder.load_checkpoint(2)

    other = RunFolder(tmp_path / "other")
    other.begin(IDENTITY | {"seed": 1})
    shutil.copytree(run / "checkpoints", other.path / "checkpoints")
    with pytest.raises(TrainingError, match="of another step or run"):
        other.load_checkpoint(2)
    other.save_state(TENSORS, FACTS)
    for file in ("state.json", "state.safetensors"):
        mixed = RunFolder(shutil.copytree(copy, tmp_path / file))
        shutil.copy(other.path / "last" / file, mixed.path / "last" / file)
        with pytest.raises(TrainingError, match=f"{file}: damaged, or of another"):
            mixed.load_state()


def test_the_probe_of_another_machine_does_not_make_another_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(IDENTITY | {"probe": [0.1, 0.2]})
    folder.save_state(TENSORS, FACTS)
    folder.begin(IDENTITY | {"probe": [0.1000001, 0.2]})
    assert folder.load_state() is not None


@pytest.mark.parametrize(
    "change", [{"step": 99}, {"step": "x"}, {"history": None}, {"history": []}]
)
def test_a_state_without_its_checksum_is_refused(run, tmp_path, change):
    folder = RunFolder(shutil.copytree(run, tmp_path / "copy"))
    (folder.path / "last" / "state.json").write_text(json.dumps(FACTS | change))
    with pytest.raises(TrainingError, match="its checksum does not match"):
        folder.load_state()
