"""``dptdr evaluate`` from the command line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import ConfigError, DataError, EvaluationError
from dptdr.evaluation import read_run
from dptdr.evaluation.report import EvaluationReport
from dptdr.io.beir import write_beir
from dptdr.model import Encoder
from dptdr.records import Passage, Query


class _WordEncoder(Encoder):
    """Vectors that count a few words: scores are computed by hand."""

    dim = 4
    name = "words"
    backbone_fingerprint = "b" * 8
    query_fingerprint = "q" * 8
    passage_fingerprint = "p" * 8
    backbone = SimpleNamespace(device="cpu")

    def __init__(self):
        pass

    def _encode(self, texts):
        words = ["fox", "dog", "cat", "sea"]
        return np.array(
            [[text.split().count(word) for word in words] for text in texts], dtype=np.float32
        ).reshape(len(texts), 4)

    def encode_queries(self, texts, *, on_progress=None):
        return self._encode(texts)

    def encode_passages(self, texts, *, on_progress=None):
        return self._encode(texts)


@pytest.fixture
def data(tmp_path):
    write_beir(
        tmp_path / "animals",
        passages=[
            Passage("p0", "fox fox"),
            Passage("p1", "fox dog"),
            Passage("p2", "dog dog"),
            Passage("p3", "cat"),
        ],
        queries=[Query("q0", "fox"), Query("q1", "dog"), Query("q2", "cat"), Query("t", "sea")],
        qrels={
            "test": {"q0": {"p1": 1}, "q1": {"p2": 2}, "q2": {"p0": 1}},
            "train": {"t": {"p0": 1}},
        },
        meta={},
    )
    return tmp_path / "animals"


def _invoke(*arguments):
    return CliRunner().invoke(build_app(), ["evaluate", *map(str, arguments)])


def _raised(*arguments):
    result = _invoke(*arguments)
    assert result.exception is not None
    return result.exception


def test_language_is_bm25s_and_an_unknown_one_is_refused_in_one_line(data, tmp_path):
    out = tmp_path / "r.json"
    result = _invoke(data, "--bm25", "--language", "german", "--json", out)
    assert "| bm25-german" in result.output
    assert json.loads(out.read_text())["language"] == "german"
    assert "got 'klingon'" in str(_raised(data, "--bm25", "--language", "klingon"))
    refused = _raised(data, "--backbone", "minilm", "--language", "german")
    assert str(refused) == "--language has no effect without --bm25; omit it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bm25", "--dtype", "float32"], "--dtype has no effect with --bm25"),
        (["--bm25", "--strict"], "--strict has no effect without --protocol"),
        (["--protocol", "msmarco", "--split", "dev"], "--split has no effect with --protocol"),
        (["--protocol", "msmarco", "--strict"], "--strict has no effect with --protocol"),
    ],
)
def test_options_without_effect_are_refused(data, options, message):
    assert message in str(_raised(*([data] if "--bm25" in options else []), *options))


def test_evaluate_bm25_writes_report_and_run_as_documented(data, tmp_path):
    out, run = tmp_path / "report.json", tmp_path / "run.trec"
    result = _invoke(data, "--bm25", "--json", out, "--run-out", run)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    # q0: fox fox before fox dog, so rank 2; q1: dog dog first; q2: only the cat, wrong.
    assert report["per_query"]["RR@10"] == {"q0": 0.5, "q1": 1.0, "q2": 0.0}
    assert report["measures"]["RR@10"] == pytest.approx(0.5)
    assert set(report["measures"]) == {"nDCG@10", "RR@10", "R@100"}
    assert (report["queries"], report["system"], report["data"], report["split"]) == (
        3,
        "bm25",
        "animals",
        "test",
    )
    assert [hit.passage_id for hit in read_run(run)["q0"]] == ["p0", "p1"]
    assert "t" not in read_run(run)
    assert "| bm25" in result.output
    assert "0.5000" in result.output


def test_evaluate_encoder_ranks_by_dot_product_and_keeps_its_fingerprints(
    data, tmp_path, monkeypatch
):
    asked = {}

    def _load(**arguments):
        asked.update(arguments)
        return _WordEncoder()

    # A stand-in: this test needs no encoder.
    monkeypatch.setattr("dptdr.api.task.load_encoder", _load)
    result = _invoke(
        data, "--backbone", "minilm", "--json", tmp_path / "r.json", "--dtype", "bfloat16"
    )
    assert result.exit_code == 0, result.output
    assert asked == {"backbone": "minilm", "device": "cpu", "dtype": "bfloat16"}
    report = EvaluationReport.read(tmp_path / "r.json")
    assert report.system == "words"
    assert report.per_query["RR@10"] == {"q0": 0.5, "q1": 1.0, "q2": 0.5}
    assert report.details["fingerprints"]["passage"] == "p" * 8
    assert report.details["depth"] == 100


def test_evaluate_finished_run_on_another_split_with_other_measures(data, tmp_path):
    (tmp_path / "mine.trec").write_text("t Q0 p3 1 2 x\nt Q0 p0 2 1 x\n")
    result = _invoke(
        data, "--run", tmp_path / "mine.trec", "--split", "train", "--measure", "P@2",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = EvaluationReport.read(tmp_path / "r.json")
    assert (report.measures, report.system, report.split) == ({"P@2": 0.5}, "mine", "train")


def test_evaluate_looks_as_deep_as_the_measures_ask(data, tmp_path):
    result = _invoke(data, "--bm25", "--measure", "R@500", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert EvaluationReport.read(tmp_path / "r.json").details["depth"] == 500


@pytest.mark.parametrize(
    ("options", "found"),
    [([], 0), (["--bm25", "--backbone", "minilm"], 2), (["--task", "t", "--run", "r"], 2)],
)
def test_evaluate_wants_exactly_one_system(data, options, found):
    error = _raised(data, *options)
    assert isinstance(error, ConfigError)
    message = f"expected exactly one of --task, --backbone, --bm25 or --run, got {found}"
    assert str(error) == message


def test_evaluate_without_data_says_what_is_missing():
    assert "expected a BEIR folder" in str(_raised("--bm25"))


def test_evaluate_names_judged_queries_without_text(data):
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nlost\tp0\t1\n")
    error = _raised(data, "--bm25")
    assert isinstance(error, DataError)
    assert "1 judged queries have no text, such as 'lost'" in str(error)


def test_evaluate_of_an_unknown_split_lists_those_there_are(data):
    assert "no split 'dev'; this folder has train, test" in str(
        _raised(data, "--bm25", "--split", "dev")
    )


def test_evaluate_leaves_the_old_report_where_it_fails(data, tmp_path):
    out = tmp_path / "report.json"
    out.write_text("old")
    error = _raised(data, "--bm25", "--measure", "nothing@3", "--json", out)
    assert isinstance(error, EvaluationError)
    assert out.read_text() == "old"


def test_evaluate_by_the_protocol_of_msmarco(tmp_path):
    (tmp_path / "qrels.tsv").write_text("1\t0\t7\t1\n2\t0\t0\t1\n")
    (tmp_path / "mine.tsv").write_text("1\t3\t1\n1\t7\t2\n")
    result = _invoke(
        "--protocol", "msmarco", "--qrels", tmp_path / "qrels.tsv", "--run", tmp_path / "mine.tsv",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["measures"] == {
        "MRR@10": 0.25, "hit_rate@50": 1.0, "hit_rate@1000": 1.0, "R@50": 0.5, "R@1000": 0.5,
    }  # fmt: skip
    assert report["queries"] == 2
    assert "queries ranked: 1 of 2; deepest rank: 2" in result.output
    assert "MRR@10: sum of 1/rank" in result.output


def test_evaluate_by_the_protocol_of_nq(tmp_path):
    (tmp_path / "qa.csv").write_text("who\t['Ann']\nwhere\t['Rome']\n")
    (tmp_path / "psgs.tsv").write_text("id\ttext\ttitle\n1\tby Ann\tx\n2\tby Bob\tRome\n")
    (tmp_path / "run").write_text("0 Q0 1 1 2 t\n1 Q0 2 1 2 t\n")
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "b", "text": "where"}\n{"_id": "a", "text": "who"}\n'
    )
    files = ["--protocol", "nq", "--qrels", tmp_path / "qa.csv", "--workers", "1"]
    files += ["--passages", tmp_path / "psgs.tsv", "--json", tmp_path / "r.json"]
    result = _invoke(*files, "--run", tmp_path / "run")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["measures"] == {"top-5": 0.5, "top-20": 0.5, "top-100": 0.5}
    (tmp_path / "named").write_text("b Q0 1 1 2 t\na Q0 1 1 2 t\n")
    result = _invoke(*files, "--run", tmp_path / "named", "--queries", tmp_path / "queries.jsonl")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["per_query"]["top-5"] == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "nq"], "--protocol nq needs --qrels, --run, --passages"),
        (["--protocol", "msmarco", "--run", "r"], "--protocol msmarco needs --qrels"),
        (["DATA", "--protocol", "nq", "--bm25"], "give --run and --qrels, not DATA, --bm25"),
    ],
)
def test_evaluate_by_protocol_says_which_files_it_needs(options, message):
    assert message in str(_raised(*options))


def test_report_refuses_what_is_no_report(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"format": 1, "system": "x"}')
    with pytest.raises(DataError, match="field 'data': expected str, got nothing"):
        EvaluationReport.read(path)
    path.write_text('{"measures": {}}')
    with pytest.raises(DataError, match="expected an evaluation report of format 1, got None"):
        EvaluationReport.read(path)
