import tracemalloc
from pathlib import Path

import pytest

from dptdr.errors import DataError
from dptdr.io import store
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.io.store import PassageStore, QueryStore
from dptdr.records import Passage, Query

PASSAGES = [
    Passage("0", "zero \u2028 \x85 end", "title"),
    Passage("7", "seven"),
    Passage("é", ""),
    Passage("00", "double zero"),
]


@pytest.fixture
def folder(tmp_path: Path) -> BeirFolder:
    write_beir(tmp_path / "d", passages=PASSAGES, queries=[Query("q", "what")], qrels={}, meta={})
    return BeirFolder(tmp_path / "d")


def test_every_record_is_found_by_its_id(folder: BeirFolder):
    passages = PassageStore(folder)

    assert [passages[passage.id] for passage in PASSAGES] == PASSAGES
    assert list(passages) == ["0", "7", "é", "00"]
    assert len(passages) == 4
    assert QueryStore(folder)["q"] == Query("q", "what")


def test_an_unknown_id_is_told(folder: BeirFolder):
    passages = PassageStore(folder)

    assert "1" not in passages
    assert 0 not in passages
    assert passages.get("1") is None
    with pytest.raises(DataError, match=r"corpus.jsonl: no passage with id '1'"):
        passages["1"]
    with pytest.raises(DataError, match=r"queries.jsonl: no query with id '1'"):
        QueryStore(folder)["1"]


def test_ids_of_equal_hash_are_told_apart(folder: BeirFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "hash", lambda text: len(text), raising=False)
    passages = PassageStore(folder)

    assert [passages[passage.id] for passage in PASSAGES] == PASSAGES
    assert "5" not in passages


def test_blank_lines_crlf_and_a_byte_order_mark_do_not_shift_rows(folder: BeirFolder):
    path = folder.path / "corpus.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines[:-1]))

    passages = PassageStore(folder)

    assert [passages[passage.id] for passage in PASSAGES] == PASSAGES


def test_a_broken_line_is_named_though_blank_lines_stand_before_it(folder: BeirFolder):
    path = folder.path / "corpus.jsonl"
    path.write_bytes(b"\n\n" + path.read_bytes() + b'{"_id": "x"}\n')

    with pytest.raises(DataError, match=r"corpus.jsonl, line 7, field 'text': missing"):
        PassageStore(folder)


def test_a_file_that_shrinks_is_noticed(folder: BeirFolder):
    passages = PassageStore(folder)
    (folder.path / "corpus.jsonl").write_bytes(b"")

    with pytest.raises(DataError, match="the file changed while being read"):
        passages["00"]


def test_texts_are_not_held_in_memory(tmp_path: Path):
    write_beir(
        tmp_path / "d",
        passages=(Passage(f"p{n}", "text " * 400) for n in range(3000)),
        queries=[],
        qrels={},
        meta={},
    )
    tracemalloc.start()
    passages = PassageStore(BeirFolder(tmp_path / "d"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (tmp_path / "d" / "corpus.jsonl").stat().st_size > 6_000_000
    assert held < 500_000
    assert passages["p2999"].text == "text " * 400
