import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import BackboneError, ConfigError, DataError, OutputError
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

SMALL = ["--max-steps", "4", "--batch-size", "4", "--eval-steps", "2", "--dev-passages", "10"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone") / "bert")


def train(*arguments):
    done = CliRunner().invoke(build_app(), ["train", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("method", ["deep-prompt", "shallow-prompt", "lora", "bitfit", "full"])
def test_train_writes_a_bundle_that_evaluate_takes(tmp_path, data, backbone, method):
    task = tmp_path / "task"
    train(data, "--backbone", backbone, "--out", task, "--method", method, *SMALL)
    manifest = json.loads((task / "task.json").read_text(encoding="utf-8"))
    assert manifest["method"] == method
    assert manifest["training"]["max_steps"] == 4
    report = tmp_path / "report.json"
    arguments = ["evaluate", data, "--task", task, "--json", report]
    CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    measured = json.loads(report.read_text(encoding="utf-8"))
    assert measured["queries"] == 6
    assert set(measured["measures"]) == {"nDCG@10", "RR@10", "R@100"}


def test_the_cost_of_storing_weights_in_16_bits_is_said(tmp_path, data, backbone):
    from dptdr.io.beir import BeirFolder
    from dptdr.model import load_task
    from dptdr.training.checkpoint_selection import dev_measures
    from dptdr.training.checkpoints import RunFolder
    from dptdr.training.preparation import load_dev

    task = tmp_path / "task"
    options = ("--storage-dtype", "bfloat16", "--prompt-layers", "2")
    done = train(data, "--backbone", backbone, "--out", task, *SMALL, *options)
    manifest = json.loads((task / "task.json").read_text(encoding="utf-8"))
    stored = manifest["measures"]["stored dev nDCG@10"]
    cost = stored - manifest["measures"]["dev nDCG@10"]
    assert f"stored as bfloat16: dev nDCG@10 {stored:.4f} ({cost:+.4f})" in done.output
    assert manifest["settings"]["prompt_layers"] == 2
    dev = load_dev(BeirFolder(data), RunFolder(tmp_path / "task.training").identity())
    assert dev_measures(load_task(task), dev, measure="nDCG@10")["nDCG@10"] == stored


def test_steps_that_nobody_gives_depend_on_the_queries(tmp_path, data, backbone):
    task = tmp_path / "task"
    done = train(data, "--backbone", backbone, "--out", task, *SMALL[2:])
    training = json.loads((task / "task.json").read_text(encoding="utf-8"))["training"]
    queries = training["train_queries"]
    assert training["max_steps"] == -(-20 * queries // 4) < 150
    assert f"only {queries} training queries: training {training['max_steps']} steps" in done.output
    assert "dev queries: too few to select checkpoints reliably" in done.output
    assert "steps (20 epochs) with feed-forward rows only" in done.output
    manifest = json.loads((task / "task.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["prompt_length"] == 0 < manifest["settings"]["ffn_length"]
    assert training["ffn_learning_rate"] == 1e-3


def test_feed_forward_rows_alone_learn_slowly_from_few_queries(tmp_path, data, backbone):
    few = (*SMALL[2:], "--backbone", backbone)
    train(data, *few, "--out", tmp_path / "start")
    train(data, *few, "--out", tmp_path / "asked", "--prompt-length", "0")
    train(data, *few, "--out", tmp_path / "more", "--from-task", tmp_path / "start")
    rate = ("--ffn-learning-rate", "2e-3")
    train(data, *few, "--out", tmp_path / "rate", "--from-task", tmp_path / "start", *rate)
    for name, expected in (("start", 1e-3), ("asked", 1e-3), ("more", 1e-3), ("rate", 2e-3)):
        training = json.loads((tmp_path / name / "task.json").read_text("utf-8"))["training"]
        assert training["ffn_learning_rate"] == expected


def test_given_steps_and_lengths_are_taken(tmp_path, data, backbone):
    train(data, "--backbone", backbone, "--out", tmp_path / "steps", *SMALL)
    train(data, "--backbone", backbone, "--out", tmp_path / "rows", *SMALL[2:], "--ffn-length", "3")
    for name, rows in (("steps", 16), ("rows", 16)):
        manifest = json.loads((tmp_path / name / "task.json").read_text(encoding="utf-8"))
        assert manifest["settings"]["prompt_length"] == rows
        assert manifest["training"]["ffn_learning_rate"] == 4e-3


def test_same_command_gives_the_same_bytes(tmp_path, data, backbone):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train(data, "--backbone", backbone, "--out", tmp_path / name / "task", *SMALL)
    one = sorted(f for f in (tmp_path / "one" / "task").iterdir())
    assert [f.name for f in one] == [
        "README.md",
        "config_sentence_transformers.json",
        "modules.json",
        "prompt.safetensors",
        "task.json",
    ]
    for file in one:
        assert file.read_bytes() == (tmp_path / "two" / "task" / file.name).read_bytes()


def test_json_says_what_was_reached(tmp_path, data, backbone):
    out = tmp_path / "summary.json"
    done = train(data, "--backbone", backbone, "--out", tmp_path / "t", "--json", out, *SMALL)
    summary = json.loads(out.read_text(encoding="utf-8"))
    assert set(summary["dev"]) == {"2", "4"}
    assert summary["best_step"] in (2, 4)
    assert "bare backbone" in done.stdout


def test_from_task_starts_at_the_other_prompt(tmp_path, data, backbone):
    first = tmp_path / "first"
    train(data, "--backbone", backbone, "--out", first, *SMALL)
    args = ["--from-task", first, "--learning-rate", "1e-9"]
    train(data, "--backbone", backbone, "--out", tmp_path / "second", *SMALL, *args)
    from safetensors.torch import load_file

    a = load_file(first / "prompt.safetensors")["shared"]
    b = load_file(tmp_path / "second" / "prompt.safetensors")["shared"]
    assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--method", "magic"], ConfigError, "expected one of deep-prompt"),
        (["--sharing", "both"], ConfigError, "--sharing: expected one of tied, untied, query-only"),
        (
            ["--initialisation", "x"],
            ConfigError,
            "--initialisation: expected one of tokens, random",
        ),
        (["--precision", "int3"], ConfigError, "--precision: expected one of float32, bfloat16"),
        (["--max-steps", "-1"], ConfigError, "--max-steps: expected at least 1, got -1"),
        (["--prompt-length", "-1"], ConfigError, "--prompt-length: expected 0 to 4096 rows"),
        (
            ["--method", "lora", "--prompt-length", "9"],
            ConfigError,
            "--prompt-length: expected method",
        ),
        (["--method", "full", "--rank", "4"], ConfigError, "--rank: expected method lora"),
        (["--max-query-tokens", "x"], ConfigError, "--max-query-tokens: expected int or none"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, data, backbone, arguments, error, words):
    with pytest.raises(error, match="(?s).*".join(words.split("|"))):
        train(data, "--backbone", backbone, "--out", tmp_path / "t", *arguments)
    assert not (tmp_path / "t").exists()


def test_all_wrong_settings_are_told_at_once(tmp_path, data, backbone):
    wrong = ["--max-steps", "-1", "--batch-size", "1", "--temperature", "0"]
    with pytest.raises(ConfigError, match=r"(?=.*--max-steps)(?=.*--batch-size).*temperature"):
        train(data, "--backbone", backbone, "--out", tmp_path / "t", *wrong)


def test_missing_backbone_folder_is_named(tmp_path, data):
    with pytest.raises(BackboneError, match=r"nowhere.*no such folder"):
        train(data, "--backbone", tmp_path / "nowhere", "--out", tmp_path / "t")


def test_missing_train_split_is_named(tmp_path, backbone):
    data = tiny_data(tmp_path / "tiny")
    (data / "qrels" / "train.tsv").unlink()
    with pytest.raises(DataError, match="train"):
        train(data, "--backbone", backbone, "--out", tmp_path / "t", *SMALL)


def test_former_names_are_still_read_but_0_is_no_default(tmp_path, data, backbone):
    former = ["--steps", "4", "--batch-size", "4", "--evaluations", "2", "--dev-passages", "10"]
    former += ["--warmup-share", "0.5", "--clip-norm", "2", "--chunk-texts", "3"]
    arguments = [data, "--backbone", backbone, "--out", tmp_path / "t", *former]
    for option in ("--learning-rate", "--max-query-tokens"):
        with pytest.raises(ConfigError, match=f"{option}: expected (above|at least)"):
            train(*arguments, option, "0")
    with pytest.raises(ConfigError, match="--mini-batch-size: given twice"):
        train(*arguments, "--mini-batch-size", "3")
    train(*arguments)
    manifest = json.loads((tmp_path / "t" / "task.json").read_text(encoding="utf-8"))
    training = manifest["training"]
    assert (training["max_steps"], training["eval_steps"]) == (4, 0.5)
    assert (training["warmup_ratio"], training["max_grad_norm"]) == (0.5, 2.0)
    assert training["mini_batch_size"] == 3


def test_training_stops_when_patience_is_over_and_a_resumed_run_stays_stopped(
    tmp_path, data, backbone
):
    options = ["--max-steps", "40", "--batch-size", "4", "--eval-steps", "1", "--patience", "2"]
    arguments = [data, "--backbone", backbone, "--out", tmp_path / "t", "--dev-passages", "10"]
    for resume in ([], ["--resume"]):
        train(*arguments, *options, "--learning-rate", "1e-9", "--json", tmp_path / "s", *resume)
        summary = json.loads((tmp_path / "s").read_text(encoding="utf-8"))
        assert set(summary["dev"]) == {"1", "2", "3"}
        # All are equal, and the latest is selected.
        assert summary["best_step"] == 3


def test_the_same_command_is_complete_and_another_one_overwrites_only_when_told(
    tmp_path, data, backbone
):
    task = tmp_path / "t"
    arguments = [data, "--backbone", backbone, "--out", task, *SMALL]
    first = train(*arguments)
    for again in (train(*arguments), train(*arguments, "--resume")):
        assert f"{task}: complete, nothing to do" in again.output
        assert again.stdout.splitlines() == first.stdout.splitlines()
    with pytest.raises(OutputError, match=r"settings differ .*temperature: was 0\.05, is 0\.1"):
        train(*arguments, "--temperature", "0.1")
    train(*arguments, "--temperature", "0.1", "--overwrite")
    manifest = json.loads((task / "task.json").read_text(encoding="utf-8"))
    assert manifest["training"]["temperature"] == 0.1


@pytest.mark.parametrize("option", ["--out", "--json", "--report"])
def test_outputs_are_tried_before_the_training(tmp_path, data, backbone, option):
    (tmp_path / "file").touch()
    outputs = {"--out": tmp_path / "t", option: tmp_path / "file" / "x"}
    options = [word for pair in outputs.items() for word in pair]
    with pytest.raises(OutputError, match="file/x: cannot be written"):
        train(data, "--backbone", backbone, *options, *SMALL)
    assert not (tmp_path / "t.training").exists()
