"""BM25: values by hand, ties, folders, threads, and bm25s itself as reference."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dptdr.errors import DataError, OutputError
from dptdr.records import Hit, Passage, Query
from dptdr.search import bm25 as module
from dptdr.search.bm25 import Bm25Index

PASSAGES = [
    Passage("0", "A red fox jumps", title="Foxes"),
    Passage("p1", "the lazy dog sleeps"),
    Passage("p2", "dogs and foxes and dogs"),
    Passage("p3", "the lazy dog sleeps"),
    Passage("p4", ""),
]


def test_search_gives_the_score_computed_by_hand():
    index = Bm25Index.build(PASSAGES)
    run = index.search([Query("q", "sleeping")], depth=10)
    # Words left after stopwords: fox red fox jump | lazi dog sleep | dog fox dog | as p1 | none.
    mean = (4 + 3 + 3 + 3 + 0) / 5
    rarity = math.log(1 + (5 - 2 + 0.5) / (2 + 0.5))
    score = rarity * 1 / (1 + 0.9 * (1 - 0.4 + 0.4 * 3 / mean))
    assert [hit.passage_id for hit in run["q"]] == ["p1", "p3"]
    assert run["q"][0].score == pytest.approx(score, rel=1e-6)
    assert run["q"][0].score == run["q"][1].score


def test_search_indexes_title_and_text_and_stems_both_sides():
    run = Bm25Index.build(PASSAGES).search([Query("q", "fox")], depth=10)
    assert [hit.passage_id for hit in run["q"]] == ["0", "p2"]


def test_search_breaks_ties_by_corpus_order_also_at_the_cut():
    passages = [Passage(f"p{9 - row}", "same words here") for row in range(10)]
    run = Bm25Index.build(passages).search([Query("q", "words")], depth=3)
    assert [hit.passage_id for hit in run["q"]] == ["p9", "p8", "p7"]


def test_search_among_rows_is_the_whole_ranking_without_the_others():
    passages, queries = _library()
    index = Bm25Index.build(passages)
    among = np.arange(1, len(passages), 7)
    ids = {passages[row].id for row in among}
    whole = index.search(queries[:30], depth=len(passages))

    found = index.search(queries[:30], depth=3, among=among)

    assert any(hits[0].passage_id not in ids for hits in whole.values())
    for name, hits in whole.items():
        assert found[name] == [hit for hit in hits if hit.passage_id in ids][:3]


def test_search_without_a_shared_word_finds_nothing():
    run = Bm25Index.build(PASSAGES).search([Query("q", "zebra the"), Query("e", "")], depth=10)
    assert run == {"q": [], "e": []}


def _library() -> tuple[list[Passage], list[Query]]:
    """Real text that every Python holds: paragraphs of a long docstring-rich module."""
    text = Path(json.__file__).read_text() + Path(__file__).read_text()
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    passages = [Passage(f"d{row}", part) for row, part in enumerate(paragraphs)]
    queries = [Query(f"q{row}", part[:60]) for row, part in enumerate(paragraphs)]
    return passages, queries


def test_search_scores_equal_bm25s_own_index():
    import bm25s
    import Stemmer

    passages, queries = _library()
    stemmer = Stemmer.Stemmer("english")
    tokens = bm25s.tokenize(
        [passage.content for passage in passages],
        stemmer=stemmer,
        show_progress=False,
        allow_empty=False,
    )
    reference = bm25s.BM25(k1=0.9, b=0.4)
    reference.index(tokens, show_progress=False)
    run = Bm25Index.build(passages).search(queries, depth=len(passages))
    compared = 0
    for query in queries:
        words = bm25s.tokenize(
            [query.text], stemmer=stemmer, show_progress=False, return_ids=False, allow_empty=False
        )[0]
        if not words:
            continue
        expected = reference.get_scores(words)
        got = {hit.passage_id: hit.score for hit in run[query.id]}
        for row, passage in enumerate(passages):
            assert got.get(passage.id, 0.0) == pytest.approx(float(expected[row]), rel=1e-5)
            compared += 1
    assert compared > 1000


def test_build_in_blocks_equals_build_at_once(monkeypatch):
    passages, queries = _library()
    whole = Bm25Index.build(passages).search(queries, depth=20)
    monkeypatch.setattr(module, "_BLOCK_PASSAGES", 3)
    seen = []
    blocks = Bm25Index.build(iter(passages), on_progress=lambda done, total: seen.append(done))
    assert blocks.search(queries, depth=20) == whole
    assert seen[-1] == len(passages)


def test_search_does_not_depend_on_the_number_of_threads():
    passages, queries = _library()
    index = Bm25Index.build(passages)
    one = index.search(queries, depth=7)
    assert index.search(queries, depth=7, threads=4) == one
    assert list(one) == [query.id for query in queries]


def test_save_and_load_give_the_same_run_without_pickle(tmp_path):
    index = Bm25Index.build(PASSAGES, k1=1.2, b=0.75)
    index.save(tmp_path / "bm25")
    queries = [Query("q", "dogs"), Query("r", "red dog")]
    loaded = Bm25Index.load(tmp_path / "bm25")
    assert loaded.search(queries, depth=5) == index.search(queries, depth=5)
    assert len(loaded) == 5
    assert {file.suffix for file in (tmp_path / "bm25").iterdir()} == {".npy", ".json"}
    settings = json.loads((tmp_path / "bm25" / "bm25.json").read_text())["settings"]
    assert settings == {"k1": 1.2, "b": 0.75, "language": "english"}


def test_save_that_fails_keeps_the_old_index(tmp_path, monkeypatch):
    Bm25Index.build(PASSAGES).save(tmp_path / "bm25")

    def _full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", _full_disk)
    with pytest.raises(OutputError, match="No space left"):
        Bm25Index.build(PASSAGES[:2]).save(tmp_path / "bm25")
    assert len(Bm25Index.load(tmp_path / "bm25")) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["bm25"]


def test_load_refuses_missing_incomplete_and_foreign_folders(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Bm25Index.load(tmp_path / "absent")
    Bm25Index.build(PASSAGES).save(tmp_path / "bm25")
    (tmp_path / "bm25" / "ids.npy").unlink()
    with pytest.raises(DataError, match=r"ids.npy: incomplete BM25 index; rebuild it"):
        Bm25Index.load(tmp_path / "bm25")
    (tmp_path / "bm25" / "bm25.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="expected format 2, got the number 99"):
        Bm25Index.load(tmp_path / "bm25")


def test_an_index_of_version_0_1_0_opens_as_english():
    old = Bm25Index.load(Path(__file__).parents[2] / "golden" / "bm25_0_1_0")
    assert old.language == "english"
    queries = [Query("q", "sleeping dogs"), Query("r", "red foxes")]
    assert old.search(queries, depth=5) == Bm25Index.build(PASSAGES).search(queries, depth=5)


@pytest.mark.parametrize("damage", ["cut", "change", "link"])
def test_damaged_files_are_refused_by_size_checksum_or_kind(tmp_path, damage):
    Bm25Index.build(PASSAGES).save(tmp_path / "bm25")
    path = tmp_path / "bm25" / "data.csc.index.npy"
    content = path.read_bytes()
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "cut" else b"x"))
    found = {"cut": "bytes: exp", "change": "sha256: exp", "link": "symbolic link"}[damage]
    with pytest.raises(DataError, match=rf"data.csc.index.npy: .*{found}"):
        Bm25Index.load(tmp_path / "bm25", verify=True)


@pytest.mark.parametrize(
    ("passages", "message"), [([], "got none"), ([Passage("a", "...")], "without any terms")]
)
def test_build_of_a_corpus_without_words_says_so(passages, message):
    with pytest.raises(DataError, match=message):
        Bm25Index.build(passages)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="k1 above 0"):
        Bm25Index.build(PASSAGES, b=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        Bm25Index.build(PASSAGES).search([], depth=0)


def test_hits_carry_ids_of_any_script():
    run = Bm25Index.build([Passage("é/日本", "word")]).search([Query("q", "words")], depth=1)
    assert run["q"] == [Hit("é/日本", run["q"][0].score)]


def test_jax_is_kept_from_taking_a_card_for_itself(tmp_path):
    """bm25s starts JAX where it is installed, and JAX takes most of a card's memory at once."""
    fake = tmp_path / "jax"
    fake.mkdir()
    (fake / "__init__.py").write_text("", encoding="utf-8")
    said = tmp_path / "said"
    (fake / "lax.py").write_text(
        "import os, pathlib\n"
        f"found = os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE')\n"
        f"pathlib.Path({str(said)!r}).write_text(str(found))\n"
        "raise ImportError('only looked at')\n",
        encoding="utf-8",
    )
    code = (
        "from dptdr.search.bm25 import Bm25Index\n"
        "from dptdr.records import Passage\n"
        "Bm25Index.build([Passage('p', 'a word')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert said.read_text(encoding="utf-8") == "false"
