import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dptdr.cli.data import app
from dptdr.data.sample import SAMPLES
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, write_beir
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


def test_sample_builds_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    half = SAMPLES["python-code"].sources()[::2]
    sample = dataclasses.replace(SAMPLES["python-code"], sources=lambda: half)
    monkeypatch.setitem(SAMPLES, "python-code", sample)

    result = runner.invoke(app, ["sample", "python-code", "--out", str(tmp_path / "s")])

    assert result.exit_code == 0
    assert BeirFolder(tmp_path / "s").splits() == ["train", "dev", "test"]
    assert "passages" in result.stdout
    assert "judgements: train " in result.stdout


def test_an_unknown_sample_raises_the_error_that_main_prints(tmp_path: Path):
    result = runner.invoke(app, ["sample", "nothing", "--out", str(tmp_path / "s")])

    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "no sample 'nothing'; there are python-code, python-api"


def test_convert_reports_counts_titles_and_differences(tmp_path: Path):
    source = tmp_path / "msmarco"
    source.mkdir()
    (source / "collection.tsv").write_text("0\ttext\n")
    (source / "queries.train.tsv").write_text("1\tquery\n")
    (source / "qrels.train.tsv").write_text("1\t0\t9\t1\n")
    report = tmp_path / "report.json"
    out = tmp_path / "out"

    arguments = ["convert", str(source), "--format", "msmarco", "--out", str(out)]
    result = runner.invoke(app, [*arguments, "--json", str(report)])

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{out}: 1 passages, 1 queries, judgements: train 1",
        "titles: none",
        "warning: 1 judgements name passages that are not there",
        "warning: collection.tsv: 1 records, published 8,841,823",
        "warning: qrels.train.tsv: 1 records, published 532,761",
        "warning: queries.train.tsv: 1 records, published 808,731",
    ]
    assert json.loads(report.read_text())["counts"]["passages"] == 1

    strict = runner.invoke(app, [*arguments, "--strict"])
    assert isinstance(strict.exception, DataError)
    assert "without --strict this is only reported" in str(strict.exception)


def test_convert_of_triples_reports_groups(tmp_path: Path):
    (tmp_path / "triples.tsv").write_text("q\tp\tn\n")
    out = tmp_path / "t.jsonl"

    result = runner.invoke(
        app,
        [
            "convert",
            str(tmp_path / "triples.tsv"),
            "--format",
            "msmarco-triples",
            "--out",
            str(out),
        ],
    )

    assert result.stdout == f"{out}: 1 training groups\n"
