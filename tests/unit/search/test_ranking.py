"""Ranking the judged queries of a folder."""

from contextlib import contextmanager
from pathlib import Path

from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query
from dptdr.search.ranking import rank


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
