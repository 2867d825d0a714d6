import sys
import types
from collections import namedtuple
from pathlib import Path

import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.formats.writing import Check
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.records import Passage, Query

Doc = namedtuple("Doc", "doc_id text")
TitledDoc = namedtuple("TitledDoc", "doc_id text document_title")
Topic = namedtuple("Topic", "query_id text")
Judged = namedtuple("Judged", "query_id doc_id relevance iteration")


class OddDoc:
    """A document that says itself what its text is."""

    doc_id = "odd"

    def default_text(self) -> str:
        return "the whole text"


class Fake:
    """The part of ir_datasets' interface that is used, with records of its own kinds."""

    def __init__(self, docs=(), queries=(), qrels=(), *, counts=None):
        self._docs, self._queries, self._qrels = docs, queries, qrels
        self._counts = counts or {}

    def has_docs(self):
        return bool(self._docs)

    def has_queries(self):
        return bool(self._queries)

    def has_qrels(self):
        return bool(self._qrels)

    def docs_iter(self):
        return iter(self._docs)

    def queries_iter(self):
        return iter(self._queries)

    def qrels_iter(self):
        return iter(self._qrels)

    def metadata(self):
        known = {part: {"count": count} for part, count in self._counts.items()}
        return {"docs": {}, "queries": {"fields": {}}, **known}


DOCS = [Doc("0", "zero"), TitledDoc("1", "one", "Title"), OddDoc()]
KNOWN = {
    "tiny/train": Fake(
        DOCS,
        [Topic("10", "ten"), Topic("11", "eleven")],
        [Judged("10", "0", 1, "0"), Judged("11", "1", 2, "0")],
        counts={"docs": 3, "queries": 2, "qrels": 2},
    ),
    "tiny/dev/small": Fake(
        DOCS,
        [Topic("20", "twenty")],
        [Judged("20", "odd", 1, "0")],
        counts={"docs": 3, "queries": 9},
    ),
    "other": Fake(DOCS, [Topic("1", "x")], []),
    "empty": Fake(),
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("ir_datasets")
    module.load = lambda name: KNOWN[name]  # type: ignore[attr-defined]
    module.__version__ = "0.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ir_datasets", module)


@pytest.mark.usefixtures("installed")
def test_data_sets_over_one_corpus_become_splits(tmp_path: Path):
    done = convert("ir:tiny/train,tiny/dev/small", format=None, out=tmp_path / "out")

    folder = BeirFolder(tmp_path / "out")
    assert list(folder.passages()) == [
        Passage("0", "zero"),
        Passage("1", "one", "Title"),
        Passage("odd", "the whole text"),
    ]
    assert list(folder.queries()) == [
        Query("10", "ten"),
        Query("11", "eleven"),
        Query("20", "twenty"),
    ]
    assert folder.qrels("train") == {"10": {"0": 1}, "11": {"1": 2}}
    assert folder.qrels("dev.small") == {"20": {"odd": 1}}
    assert done.differences == (Check(what="tiny/dev/small queries", expected=9, found=1),)
    assert len(done.checks) == 4


@pytest.mark.usefixtures("installed")
def test_unknown_empty_and_mixed_data_sets_are_refused(tmp_path: Path):
    for source, expected in [
        ("ir:nothing", "unknown data set 'nothing' in ir_datasets"),
        ("ir:empty", "'empty': the data set has no documents"),
        ("ir:tiny/train,other", "expected data sets that share a corpus"),
    ]:
        with pytest.raises(DataError, match=expected):
            convert(source, format="ir_datasets", out=tmp_path / "out")


def test_a_missing_ir_datasets_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)

    with pytest.raises(DataError, match=r"needs ir_datasets; run `pip install 'dptdr\["):
        convert("ir:msmarco-passage/train", format=None, out=tmp_path / "out")
