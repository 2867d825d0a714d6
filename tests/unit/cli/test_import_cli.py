import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import BundleError, ConfigError
from helpers.authors import save_authors


def run(*arguments):
    return CliRunner().invoke(build_app(), [*map(str, arguments)])


def test_authors_checkpoint_becomes_backbone_and_task_and_goes_on_to_peft(tmp_path):
    save_authors(tmp_path / "theirs")
    done = run(
        *("import", tmp_path / "theirs", "--format", "dptdr-authors", "--out", tmp_path / "ours"),
        *("--max-passage-tokens", "20", "--max-query-tokens", "20"),
        *("--json", tmp_path / "facts.json"),
    )
    assert done.exit_code == 0, done.output
    assert "tied prompt of 6 rows, 768 numbers" in done.output
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert facts["settings"]["position"] == "shifted"
    assert facts["task_bytes"] < facts["checkpoint_bytes"]
    exported = run("export-peft", tmp_path / "ours" / "task", "--out", tmp_path / "peft")
    assert exported.exit_code == 0, exported.output
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["num_virtual_tokens"] == 6
    assert settings["base_model_name_or_path"] == str(tmp_path / "ours" / "backbone")
    back = run(
        *("import", tmp_path / "peft", "--format", "peft", "--out", tmp_path / "back"),
        *("--max-passage-tokens", "20", "--max-query-tokens", "20"),
    )
    assert back.exit_code == 0, back.output
    fingerprints = [
        json.loads((folder / "task.json").read_text(encoding="utf-8"))["query_fingerprint"]
        for folder in (tmp_path / "ours" / "task", tmp_path / "back")
    ]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "peft", "--tokenizer", "x"], "--tokenizer applies only to dptdr-authors"),
        (["--format", "dptdr-authors", "--backbone", "x"], "--backbone applies only to peft"),
    ],
)
def test_options_of_the_other_format_are_refused(tmp_path, options, message):
    done = run("import", tmp_path, "--out", tmp_path / "o", *options)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_folder_without_a_checkpoint_is_named(tmp_path):
    done = run("import", tmp_path, "--format", "dptdr-authors", "--out", tmp_path / "o")
    assert isinstance(done.exception, BundleError)
    assert "expected a saved model with a config.json" in str(done.exception)
