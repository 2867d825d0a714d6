import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import BackboneError, ConfigError, DataError
from helpers.pretraining import topic_corpus
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

SMALL = [
    *("--max-steps", "3", "--batch-size", "6", "--span-tokens", "20", "--min-span-tokens", "5"),
    *("--eval-steps", "0", "--dev-documents", "4", "--mini-batch-size", "5"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return topic_corpus(tmp_path_factory.mktemp("data") / "topics")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("labelled") / "tiny")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone") / "bert")


def call(*arguments):
    done = CliRunner().invoke(build_app(), list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


TRAIN = ["--max-steps", "2", "--batch-size", "4", "--eval-steps", "0", "--dev-passages", "10"]


def test_pretrained_backbone_is_taken_by_train(tmp_path, data, labelled, backbone):
    out, summary = tmp_path / "adapted", tmp_path / "summary.json"
    said = call("pretrain", data, "--backbone", backbone, "--out", out, "--json", summary, *SMALL)
    assert "none in the checkpoint, so a new one tied to the word embeddings" in said.output
    assert (
        "masked-language head and Condenser layers not in the checkpoint: training new ones alone "
        "first (--head-warmup-steps 1)"
    ) in said.output
    assert "warmed up first, loss" in said.output
    assert "gave fewer than two spans: used for masked words only" in said.output
    assert "--keep-head keeps them" in said.output
    found = json.loads(summary.read_text(encoding="utf-8"))
    assert found["objectives"] == ["mlm", "condenser", "contrastive"]
    assert set(found["dev"]) == {"3"}
    assert found["tokens"] > 0
    call("train", labelled, "--backbone", out, "--out", tmp_path / "task", *TRAIN)
    manifest = json.loads((tmp_path / "task" / "task.json").read_text(encoding="utf-8"))
    assert manifest["backbone_fingerprint"] == found["backbone_fingerprint"]


def test_pretrained_prompt_is_a_task_and_a_start(tmp_path, data, labelled, backbone):
    out = tmp_path / "start"
    options = ["--prompt-only", "--prompt-length", "3", "--sharing", "untied", *SMALL]
    options += ["--objectives", "contrastive"]
    said = call("pretrain", data, "--backbone", backbone, "--out", out, *options)
    assert "no words were masked, so no head was needed" in said.output
    assert "gave fewer than two spans: of no use here" in said.output
    assert f"dptdr train DATA --from-task {out}" in said.output
    call("evaluate", labelled, "--task", out, "--json", tmp_path / "report.json")
    options = ["--from-task", out, "--prompt-length", "3", "--sharing", "untied", *TRAIN]
    call("train", labelled, "--backbone", backbone, "--out", tmp_path / "task", *options)
    manifest = json.loads((tmp_path / "task" / "task.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["initialisation"] == "task"


def test_a_finished_run_is_complete_and_prints_the_same(tmp_path, data, backbone):
    arguments = ["pretrain", data, "--backbone", backbone, "--out", tmp_path / "out", *SMALL]
    arguments += ["--objectives", "contrastive"]
    first = call(*arguments)
    again = call(*arguments, "--resume")
    assert "complete, nothing to do" in again.output
    assert again.stdout.splitlines() == first.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objectives", "mlm,tsdae"], r"objectives: expected one of mlm, .*, got 'tsdae'"),
        (["--objectives", "mlm,mlm"], r"objectives: expected distinct names"),
        (
            ["--max-steps", "0", "--batch-size", "1"],
            r"(?=.*--max-steps: .* got 0).*--batch-size: .* 2",
        ),
        (["--mask-share", "1"], r"--mlm-probability: expected above 0 and below 1, got 1\.0"),
        (["--span-tokens", "4"], r"--span-tokens: expected at least min_span_tokens \(16\), got 4"),
        (["--dev-measure", "nDCG@10"], r"dev-measure: expected one of negative loss, sibling R@1"),
        (["--precision", "int8"], r"precision: expected one of float32, bfloat16, got 'int8'"),
        (
            ["--schedule", "up", "--seed", "-1"],
            r"(?=.*schedule: .* got 'up').*seed: .* 4294967295, got -1",
        ),
        (["--prompt-only", "--keep-head"], r"--keep-head: does not apply with prompt_only"),
        (["--objectives", "fused"], r"--objectives: fused only applies with prompt_only"),
        (["--prompt-length", "4"], r"--prompt-length: only applies with prompt_only"),
        (["--prompt-only", "--sharing", "all"], r"sharing: expected one of tied, untied"),
    ],
)
def test_wrong_setting_is_named_before_anything_loads(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        call("pretrain", tmp_path / "none", "--out", tmp_path / "out", *options)


def test_missing_data_and_backbone_are_named(tmp_path, data):
    with pytest.raises(DataError, match=r"expected a BEIR folder"):
        call("pretrain", tmp_path / "none", "--out", tmp_path / "out", *SMALL)
    with pytest.raises(BackboneError, match=r"no such folder"):
        call("pretrain", data, "--backbone", "./none", "--out", tmp_path / "out", *SMALL)


def test_corpus_smaller_than_the_batch_leaves_nothing_behind(tmp_path, data, backbone):
    arguments = ["pretrain", data, "--backbone", backbone, "--out", tmp_path / "out"]
    with pytest.raises(ConfigError, match=r"64 \(batch_size\) for training; use a smaller batch"):
        call(*arguments)
    assert list(tmp_path.iterdir()) == []
