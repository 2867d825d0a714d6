import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dptdr.cli.data import app
from dptdr.data.beir import BeirFolder, write_beir
from dptdr.errors import DataError
from dptdr.records import Passage, Query

runner = CliRunner()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    write_beir(
        tmp_path / "sound",
        passages=[Passage("0", "one two three", "title")],
        queries=[Query("q", "what is one")],
        qrels={"test": {"q": {"0": 1}}},
        meta={},
    )
    return tmp_path / "sound"


def test_inspect_prints_counts_and_ends_well(sound: Path):
    result = runner.invoke(app, ["inspect", str(sound)])

    assert result.exit_code == 0
    assert "passages  1      1       19.0 / 19 / 19 / 19" in result.stdout
    assert "test   1        1           1         1: 1" in result.stdout
    assert result.stdout.rstrip().endswith("kinds of error: 0, kinds of warning: 0")


def test_inspect_ends_with_code_2_and_lists_every_error(sound: Path, tmp_path: Path):
    with (sound / "qrels" / "test.tsv").open("a") as handle:
        handle.write("q\tgone\t1\nq\t0\tx\n")
    report = tmp_path / "report.json"

    result = runner.invoke(app, ["inspect", str(sound), "--json", str(report)])

    assert result.exit_code == 2
    assert "error: judgement of an unknown passage (1)\n  qrels/test.tsv:3: 'gone'" in result.stdout
    assert "error: broken line (1)\n  qrels/test.tsv:4, field 'score'" in result.stdout
    assert [problem["kind"] for problem in json.loads(report.read_text())["problems"]] == [
        "judgement of an unknown passage",
        "broken line",
    ]


def test_inspect_ends_well_with_warnings_alone(sound: Path):
    (sound / "qrels" / "test.tsv").write_text("q\t0\t1\n")

    result = runner.invoke(app, ["inspect", str(sound)])

    assert result.exit_code == 0
    assert "warning: no header (1)" in result.stdout


def test_sample_builds_a_data_set(tmp_path: Path):
    result = runner.invoke(app, ["sample", "python-code", "--out", str(tmp_path / "s")])

    assert result.exit_code == 0
    assert BeirFolder(tmp_path / "s").splits() == ["train", "dev", "test"]
    assert "passages" in result.stdout
    assert "judgements: train " in result.stdout


def test_an_unknown_sample_raises_the_error_that_main_prints(tmp_path: Path):
    result = runner.invoke(app, ["sample", "nothing", "--out", str(tmp_path / "s")])

    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "no sample 'nothing'; there are python-code, python-api"
