"""Bad input on the command line: exit code 2, one line that names the place, nothing lost."""

import json
import os
import shutil

import pytest

from helpers.program import dptdr
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

SMALL = ["--steps", "2", "--batch-size", "4", "--evaluations", "1", "--dev-passages", "10"]


def refused(*arguments):
    """Return the one line of a refusal."""
    done = dptdr(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two backbones, data, a task with an index on the first, another task on the first."""
    root = tmp_path_factory.mktemp("world")
    tiny_data(root / "data")
    for number in (0, 1):
        save_tiny(root / f"backbone{number}", seed=number)
    for name, seed in (("task", 0), ("other", 1)):
        train = ["train", root / "data", "--backbone", root / "backbone0", "--seed", seed]
        dptdr(*train, "--out", root / name, *SMALL, check=True)
    task = ["--task", root / "task"]
    dptdr("encode", root / "data", *task, "--out", root / "vectors", check=True)
    dptdr("index", root / "vectors", "--index-type", "exact", "--out", root / "index", check=True)
    return root


def test_index_answers_its_own_task(world):
    done = dptdr("search", world / "index", "a word", "--task", world / "task", check=True)
    assert done.stdout.strip()


def test_missing_file_is_named(tmp_path, world):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    (data / "corpus.jsonl").unlink()
    assert "corpus.jsonl" in refused("evaluate", data, "--bm25")


def test_broken_json_on_line_seven_is_named(tmp_path, world):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    lines = (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    lines[6] = lines[6][:-3]
    (data / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    message = refused("evaluate", data, "--bm25")
    assert "corpus.jsonl" in message
    assert "line 7" in message


@pytest.mark.parametrize(
    ("line", "what"), [("q0\tno-such-passage\t1", "passage"), ("no-such-query\tp0\t1", "query")]
)
def test_qrels_that_name_an_unknown_id_are_refused(tmp_path, world, line, what):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    with (data / "qrels" / "train.tsv").open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    backbone = world / "backbone0"
    message = refused("train", data, "--backbone", backbone, "--out", tmp_path / "t", *SMALL)
    assert f"no-such-{what}" in message
    assert not (tmp_path / "t").exists()
    inspected = dptdr("data", "inspect", data)
    assert inspected.returncode == 2
    assert f"no-such-{what}" in inspected.stdout + inspected.stderr


@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, None], ids=["nested", "pipe"])
def test_unreadable_task_file_is_refused_at_once(tmp_path, world, content):
    if content is None:
        os.mkfifo(tmp_path / "task.json")
    else:
        (tmp_path / "task.json").write_text(content)
    for command in (
        ("evaluate", world / "data", "--task", tmp_path),
        ("search", world / "index", "a text", "--task", tmp_path),
        ("encode", world / "data", "--task", tmp_path, "--out", tmp_path / "out"),
        ("train", world / "data", "--from-task", tmp_path, "--out", tmp_path / "out"),
        ("export-peft", tmp_path, "--out", tmp_path / "out"),
        ("serve", tmp_path, "--state", tmp_path / "state"),
    ):
        assert "task.json" in refused(*command)


def test_backbone_without_support_is_refused(tmp_path, world):
    import transformers

    config = transformers.FNetConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, intermediate_size=48
    )
    folder = tmp_path / "fnet"
    transformers.FNetModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "backbone0" / name, folder / name)
    message = refused(
        "train", world / "data", "--backbone", folder, "--out", tmp_path / "t", *SMALL
    )
    assert "FNet" in message
    assert "layer" in message


def test_bundle_for_another_backbone_is_refused_with_both_fingerprints(world):
    manifest = json.loads((world / "task" / "task.json").read_text(encoding="utf-8"))
    from dptdr.model import Backbone

    other = Backbone.load(str(world / "backbone1")).fingerprint
    moved = world / "moved"
    shutil.copytree(world / "task", moved)
    manifest["backbone"] = str(world / "backbone1")
    (moved / "task.json").write_text(json.dumps(manifest), encoding="utf-8")
    message = refused("evaluate", world / "data", "--task", moved)
    assert manifest["backbone_fingerprint"] in message
    assert other in message


def test_index_made_by_another_prompt_is_refused(world):
    message = refused("search", world / "index", "a word", "--task", world / "other")
    own, other = (
        json.loads((world / name / "task.json").read_text(encoding="utf-8"))["passage_fingerprint"]
        for name in ("task", "other")
    )
    assert own[:12] in message
    assert other[:12] in message
