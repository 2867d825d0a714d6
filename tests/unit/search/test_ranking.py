"""Ranking the judged queries of a folder."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query
from dptdr.search.ranking import measure, needed_depth, rank


@contextmanager
def silent(_name):
    yield lambda done, total: None


def test_relevant_passages_that_are_not_in_the_corpus_are_said(tmp_path: Path, capsys):
    query = Query("q", "red apples")
    write_beir(
        tmp_path / "data",
        passages=[Passage("p1", "red apples"), Passage("p2", "blue pears")],
        queries=[query],
        qrels={},
        meta={},
    )
    folder = BeirFolder(tmp_path / "data")
    shared = {"queries": [query], "depth": 2, "phase": silent}

    rank("bm25", folder, qrels={"q": {"p1": 1, "gone": 1, "harmless": 0}}, **shared)
    said = capsys.readouterr().err
    rank("bm25", folder, qrels={"q": {"p1": 1, "p2": 2}}, **shared)

    assert "1 of 2 relevant passages are not in the corpus, such as 'gone'" in said
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("measures", "depth"),
    [
        ([], 100),
        (["nDCG@10"], 100),
        (["R@500", "RR@10"], 500),
        (["AP"], 1000),
        (["nDCG(judged_only=True)@10"], 1000),
        (["Bpref"], 1000),
    ],
)
def test_rankings_are_as_deep_as_the_measures_require(measures, depth):
    assert needed_depth(measures) == depth


@pytest.mark.parametrize(
    ("name", "depth", "said"),
    [
        ("nDCG(judged_only=True)@10", 2, True),
        ("Bpref", 2, True),
        ("nDCG@10", 2, False),
        ("nDCG(judged_only=True)@10", 4, False),
    ],
)
def test_measures_of_judged_passages_say_that_the_ranking_ends_before_the_corpus(
    tmp_path: Path, capsys, name, depth, said
):
    query = Query("q", "red apples")
    passages = [Passage(f"p{number}", "red apples") for number in range(3)]
    write_beir(tmp_path / "data", passages=passages, queries=[query], qrels={}, meta={})
    folder, qrels = BeirFolder(tmp_path / "data"), {"q": {"p1": 1}}
    made = rank("bm25", folder, queries=[query], depth=depth, qrels=qrels, phase=silent)
    measure(made, folder, split="test", qrels=qrels, measures=[name], depth=depth)

    words = f"{name}: only judged passages among the first {depth} hits count"
    assert (words in capsys.readouterr().err) is said
