import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.cli.data import app
from dptdr.data.sample import SAMPLES
from dptdr.errors import ConfigError, DataError, OutputError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

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
    assert (
        str(result.exception)
        == "expected one of the samples python-code, python-api, got 'nothing'"
    )


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
        "read as msmarco",
        f"{out}: 1 passages, 1 queries, judgements: train 1",
        "titles: none",
        "warning: 1 judgements refer to unknown passages",
        "warning: collection.tsv: 1 records, published 8,841,823",
        "warning: qrels.train.tsv: 1 records, published 532,761",
        "warning: queries.train.tsv: 1 records, published 808,731",
    ]
    assert json.loads(report.read_text())["counts"]["passages"] == 1

    strict = runner.invoke(app, [*arguments, "--strict"])
    assert isinstance(strict.exception, DataError)
    assert "only reported without --strict" in str(strict.exception)


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

    assert result.stdout.splitlines() == [
        "read as msmarco-triples",
        f"{out}: 1 training groups",
    ]


def test_convert_of_a_table_says_what_it_read_dropped_and_how_to_train(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("ask,right,wrong,id\na,p,n,1\na,p,n,2\nb,q,,3\n,q,,4\n")
    out = tmp_path / "out"

    arguments = ["convert", str(table), "--out", str(out), "--split", "test"]
    columns = ["--query-column", "ask", "--positive-column", "right", "--negative-column", "wrong"]
    result = runner.invoke(app, [*arguments, *columns])

    assert result.stdout.splitlines() == [
        "read as table: triplets in csv (query = ask; positive = right; negatives = wrong; "
        "unused = id)",
        f"{out}: 3 passages, 2 queries, judgements: test 2",
        "titles: none",
        "dropped: 1 duplicate pairs",
        "dropped: 1 rows without a query",
        f"training groups of 2 test queries: {out}/negatives-test.jsonl",
    ]
    trained = runner.invoke(app, [*arguments[:4], *columns])
    assert "no split to evaluate on; --test-share 0.2" in trained.stdout
    assert trained.stdout.splitlines()[-1] == (
        f"to train with them: dptdr train {out} --negatives {out}/negatives-train.jsonl"
    )


def test_convert_holds_out_shares_and_reads_scores(tmp_path: Path):
    rows = "".join(f"q{number},p{number},{number / 100}\n" for number in range(100))
    (tmp_path / "t.csv").write_text("query,passage,score\n" + rows)
    out = tmp_path / "out"

    shares = ["--dev-share", "0.3", "--test-share", "0.3", "--seed", "1", "--min-score", "0.5"]
    result = runner.invoke(app, ["convert", str(tmp_path / "t.csv"), "--out", str(out), *shares])

    assert result.exit_code == 0
    assert "no split to evaluate on" not in result.stdout
    folder = BeirFolder(out)
    assert folder.splits() == ["train", "dev", "test"]
    grades = [
        g for split in folder.splits() for q in folder.qrels(split).values() for g in q.items()
    ]
    assert len(grades) == 100
    assert sum(grade for _, grade in grades) == 50


def test_a_split_named_twice_is_refused(tmp_path: Path):
    data = tiny_data(tmp_path / "data")
    twice = ["--queries", "test=1", "--queries", "test=2", "--passages", "9"]
    command = ["data", "cap", str(data), *twice, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(build_app(), command)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "--queries: expected each split once, got test again"


@pytest.mark.parametrize("output", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_report_never_replaces_a_file_of_the_data(tmp_path: Path, output: str):
    data = tiny_data(tmp_path / "data")
    before = (data / output).read_bytes()
    for command in (
        ["data", "inspect", str(data), "--json", str(data / output)],
        ["evaluate", str(data), "--bm25", "--json", str(data / output)],
        ["mine", str(data), "--source", "bm25", "--out", str(data / output), "--overwrite"],
        ["data", "cap", str(data), "--queries", "test=2", "--passages", "9", "--out", str(data)],
    ):
        result = CliRunner().invoke(build_app(), command)
        assert isinstance(result.exception, OutputError), command
        assert "would replace" in str(result.exception)
    assert (data / output).read_bytes() == before


def test_outputs_stay_apart_from_each_other_and_from_the_backbone_of_a_task(tmp_path: Path):
    data = tiny_data(tmp_path / "data")
    backbone = save_tiny(tmp_path / "bert")
    task = tmp_path / "task"
    task.mkdir()
    (task / "task.json").write_text(json.dumps({"backbone": str(backbone)}))
    same, config = tmp_path / "same", str(backbone / "config.json")
    before = (backbone / "config.json").read_bytes()
    report = ["--json", config]
    both = ["--json", str(same), "--run-out", str(same)]
    inside = ["--out", str(same), "--json", f"{same}/m"]
    for command, kind in (
        (["evaluate", str(data), "--task", str(task), *report], OutputError),
        (["mine", str(data), "--source", f"task:{task},top=9", "--out", config], OutputError),
        (["evaluate", str(data), "--bm25", *both], OutputError),
        (["encode", str(data), "--task", str(task), *inside], OutputError),
    ):
        result = CliRunner().invoke(build_app(), command)
        assert isinstance(result.exception, kind), command
    assert (backbone / "config.json").read_bytes() == before
    assert not same.exists()


def test_mining_again_with_bm25_finds_its_file_complete(tmp_path: Path, monkeypatch):
    data = tiny_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    command = ["mine", str(data), "--source", "bm25", "--num-negatives", "2", "--out", "m.jsonl"]
    for _ in range(2):
        result = CliRunner().invoke(build_app(), command)
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(build_app(), [*command, "--overwrite"]).exit_code == 0
