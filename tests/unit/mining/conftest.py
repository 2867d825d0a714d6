import numpy as np
import pytest

from dptdr.mining.corpus import CorpusTable, JudgementTable
from dptdr.mining.counting import MiningInputs
from dptdr.mining.runtable import RunTableWriter
from dptdr.mining.settings import SourceSettings
from dptdr.records import Passage, Query


class Rows:
    """Passages by row, held in a list."""

    def __init__(self, passages):
        self.passages = passages

    def at(self, row):
        return self.passages[row]


class TableTeacher:
    """A teacher double: scores by (query id, row), with what it was asked for."""

    needs_texts = True

    def __init__(self, scores, *, default=0.0, fail_at=None):
        self.scores = scores
        self.default = default
        self.name = "table"
        self.fingerprint = f"table {sorted(scores.items())} {default}"
        self.asked = []
        self.fail_at = fail_at

    def score(self, pairs):
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise KeyboardInterrupt
        self.asked.extend((pair.query_id, pair.row) for pair in pairs)
        return [self.scores.get((pair.query_id, pair.row), self.default) for pair in pairs]


class World:
    """A tiny corpus with runs, from plain lists."""

    def __init__(self, folder, *, texts, judgements, runs, teacher=None, ids=None):
        ids = ids or [f"p{row}" for row in range(len(texts))]
        self.passages = [Passage(key, text) for key, text in zip(ids, texts, strict=True)]
        self.corpus = CorpusTable.build(iter(self.passages))
        self.queries = [Query(key, f"text of {key}") for key in judgements]
        triples = [
            (query, passage, grade)
            for query, grades in judgements.items()
            for passage, grade in grades.items()
        ]
        tables = {}
        for name, rankings in runs.items():
            writer = RunTableWriter(folder / "runs" / name, fingerprint=name)
            writer.write_part(
                (query, np.array(rows), np.linspace(1.0, 0.1, len(rows)) if rows else np.zeros(0))
                for query, rows in rankings.items()
            )
            tables[name] = writer.finish()
        self.inputs = MiningInputs(
            queries=lambda: iter([*self.queries, Query("unjudged", "x")]),
            judgements=JudgementTable.build(triples, corpus=self.corpus),
            corpus=self.corpus,
            passages=Rows(self.passages),
            runs=tables,
            teacher=teacher,
        )


@pytest.fixture
def world(tmp_path):
    def _make(**arguments):
        return World(tmp_path, **arguments)

    return _make


@pytest.fixture
def make_teacher():
    return TableTeacher


@pytest.fixture
def source():
    def _make(name="bm25", **changes):
        return SourceSettings(name=name, kind="run", value=name, **changes)

    return _make
