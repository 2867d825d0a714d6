"""Laws of mining that hold for any corpus, judgements and runs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.io.ids import normalised
from dptdr.mining.corpus import CorpusTable, JudgementTable
from dptdr.mining.counting import MiningInputs
from dptdr.mining.pipeline import mine
from dptdr.mining.runtable import RunTableWriter
from dptdr.mining.settings import FilteringSettings, MiningSettings, SourceSettings
from dptdr.mining.statistics import BottomSample, Statistics
from dptdr.records import Passage, Query
from dptdr.search.bm25 import Bm25Index


class _Rows:
    def __init__(self, passages):
        self.passages = passages

    def at(self, row):
        return self.passages[row]


class _Teacher:
    """Scores that depend on the pair alone."""

    name = "hash"
    fingerprint = "hash"
    needs_texts = True

    def score(self, pairs):
        return [
            (len(pair.content) * 7 + pair.row * 13 + len(pair.query_id)) % 11 / 10 for pair in pairs
        ]


# Few words, so that copies in other spelling are common.
texts = st.lists(
    st.sampled_from(["a", "A", "a b", "A  B", "b", "c d", "C D ", "e", "f", "ﬁ", "fi"]),
    min_size=1,
    max_size=12,
)


@st.composite
def minings(draw):
    """A corpus, judgements of up to four queries, up to three runs, and settings."""
    corpus = draw(texts)
    rows = st.integers(0, len(corpus) - 1)
    queries = [f"q{number}" for number in range(draw(st.integers(1, 4)))]
    judgements = {
        query: draw(st.dictionaries(rows, st.integers(0, 2), min_size=1, max_size=4))
        for query in queries
    }
    names = draw(st.lists(st.sampled_from("xyz"), unique=True, min_size=1, max_size=3))
    runs = {
        name: {
            query: draw(st.lists(rows, unique=True, max_size=len(corpus)))
            for query in queries
            if query == "q0" or draw(st.booleans())
        }
        for name in names
    }
    # Plain values: objects of the package, type-checked in tests, are made outside of strategies.
    sources = [
        {
            "name": name,
            "kind": "run",
            "value": name,
            "range_min": draw(st.integers(1, 3)),
            "range_max": draw(st.integers(3, 12)),
            "num_negatives": draw(st.integers(1, 5)),
            "sampling": draw(st.sampled_from(["top", "uniform", "score"])),
        }
        for name in names
    ]
    bound = draw(
        st.sampled_from(
            [{}, {"absolute_margin": 0.2}, {"relative_margin": 0.1}, {"max_score": 0.6}]
        )
    )
    return corpus, judgements, runs, (sources, bound, draw(st.integers(0, 3)))


def _settings(plain):
    sources, bound, seed = plain
    return MiningSettings(
        sources=tuple(SourceSettings(**source) for source in sources),
        filtering=FilteringSettings(**bound),
        seed=seed,
    )


def _inputs_of(folder, corpus, judgements, runs, *, teacher):
    passages = [Passage(f"p{row}", text) for row, text in enumerate(corpus)]
    table = CorpusTable.build(passages)
    tables = {}
    for name, rankings in runs.items():
        writer = RunTableWriter(folder / name, fingerprint=name)
        if not writer.finished:
            writer.write_part(
                (query, np.array(rows, dtype=int), -np.arange(len(rows), dtype=float))
                for query, rows in rankings.items()
            )
        tables[name] = writer.finish()
    triples = [
        (query, f"p{row}", grade)
        for query, rows in judgements.items()
        for row, grade in rows.items()
    ]
    return MiningInputs(
        queries=lambda: (Query(query, query) for query in judgements),
        judgements=JudgementTable.build(triples, corpus=table),
        corpus=table,
        passages=_Rows(passages),
        runs=tables,
        teacher=teacher,
    )


def _mined(folder, inputs, mining, *, name):
    from dptdr.errors import NegativesError

    out = folder / f"{name}.jsonl"
    try:
        statistics = mine(inputs, mining, out=out, work=folder / name)
    except NegativesError as error:
        if "no negatives found" in str(error) or "has a positive" in str(error):
            return None, None
        raise
    return out.read_bytes(), statistics


_relaxed = settings(max_examples=40)


@given(case=minings())
@_relaxed
def test_no_judged_positive_nor_copy_of_one_is_ever_a_negative_and_no_text_stands_twice(case):
    corpus, judgements, runs, plain = case
    mining = _settings(plain)
    teacher = _Teacher() if mining.filtering.drops else None
    with tempfile.TemporaryDirectory() as place:
        inputs = _inputs_of(Path(place), corpus, judgements, runs, teacher=teacher)
        content, statistics = _mined(Path(place), inputs, mining, name="one")
    if content is None:
        return
    total = 0
    for record in map(json.loads, content.splitlines()):
        rows = [int(item["id"][1:]) for item in record["negatives"]]
        judged = judgements[record["query_id"]]
        positives = {row for row, grade in judged.items() if grade > 0}
        assert set(record["positives"]) == {f"p{row}" for row in positives}
        assert not {normalised(corpus[row]) for row in rows} & {
            normalised(corpus[row]) for row in positives
        }
        assert len({normalised(corpus[row]) for row in rows}) == len(rows)
        total += len(rows)
        windows = {source.name: source for source in mining.sources}
        for item in record["negatives"]:
            assert any(
                windows[name].range_min <= entry["rank"] <= windows[name].range_max
                for name, entry in item["sources"].items()
            ) or any(
                # A copy may rank in the window while its best rank is above it.
                normalised(corpus[row]) == normalised(corpus[int(item["id"][1:])])
                for name in item["sources"]
                for row in runs[name][record["query_id"]]
            )
            for name, entry in item["sources"].items():
                ranked = runs[name][record["query_id"]][entry["rank"] - 1]
                assert normalised(corpus[ranked]) == normalised(corpus[int(item["id"][1:])])
        quota = sum(source.num_negatives for source in mining.sources)
        assert len(rows) <= quota
    assert total == statistics.negatives


@given(case=minings(), blocks=st.integers(1, 3))
@_relaxed
def test_same_inputs_and_seed_give_the_same_bytes_whatever_the_blocks(case, blocks):
    from dataclasses import replace

    corpus, judgements, runs, plain = case
    mining = _settings(plain)
    teacher = _Teacher() if mining.filtering.drops else None
    with tempfile.TemporaryDirectory() as place:
        inputs = _inputs_of(Path(place), corpus, judgements, runs, teacher=teacher)
        one, counts = _mined(Path(place), inputs, mining, name="one")
        again = replace(mining, block_queries=blocks)
        other, other_counts = _mined(Path(place), inputs, again, name="other")
    assert one == other
    if counts is not None:
        assert counts.as_json() == other_counts.as_json()
        stored = json.loads(json.dumps(counts.as_json()))
        assert Statistics.from_json(stored).as_json() == counts.as_json()


@given(
    items=st.lists(st.text(max_size=4), unique=True, max_size=40),
    size=st.integers(1, 10),
    cut=st.integers(0, 40),
)
def test_a_sample_does_not_depend_on_order_or_interruption(items, size, cut):
    whole = BottomSample(size)
    for item in items:
        whole.offer(item, lambda item=item: item)
    first = BottomSample(size)
    for item in items[:cut]:
        first.offer(item, lambda item=item: item)
    first.trim()
    second = BottomSample(size, json.loads(json.dumps(first.items)))
    for item in reversed(items[cut:]):
        second.offer(item, lambda item=item: item)
    assert second.values() == whole.values()
    assert len(whole.values()) == min(size, len(items))


@given(
    passages=st.lists(
        st.lists(st.sampled_from(["fox", "dog", "sea", "sun", "moon"]), max_size=6),
        min_size=1,
        max_size=15,
    ).filter(any),
    threads=st.integers(2, 4),
    depth=st.integers(1, 6),
)
@settings(max_examples=40)
def test_bm25_ranks_alike_with_any_threads_and_a_shallow_search_is_the_top_of_a_deep_one(
    passages, threads, depth
):
    index = Bm25Index.build(
        Passage(f"p{row}", " ".join(words)) for row, words in enumerate(passages)
    )
    queries = [Query(f"q{row}", " ".join(words)) for row, words in enumerate(passages)]
    deep = index.search(queries, depth=len(passages))
    shallow = index.search(queries, depth=depth, threads=threads)
    assert shallow == {query: hits[:depth] for query, hits in deep.items()}
    for hits in deep.values():
        order = [(-hit.score, int(hit.passage_id[1:])) for hit in hits]
        assert order == sorted(order)
        assert all(hit.score > 0 for hit in hits)


_SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_negatives_laws import _Teacher, _inputs_of
from dptdr.mining.pipeline import mine
from dptdr.mining.settings import *
place, out, calls = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

class Killer(_Teacher):
    def score(self, pairs):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(pairs)

corpus = [f"text {row}" for row in range(40)]
judgements = {f"q{n}": {n: 1} for n in range(40)}
runs = {"x": {f"q{n}": [(n + 3 * k) % 40 for k in range(25)] for n in range(40)}}
inputs = _inputs_of(place, corpus, judgements, runs, teacher=Killer())
source = SourceSettings(name="x", kind="run", value="x", num_negatives=5, sampling="uniform")
mining = MiningSettings(
    sources=(source,), filtering=FilteringSettings(absolute_margin=0.1), block_queries=10
)
mine(inputs, mining, out=out, work=place / "work")
"""


def test_a_process_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def _run(place, out, calls):
        command = [sys.executable, "-c", _SCRIPT, here, str(place), str(out), str(calls)]
        return subprocess.run(command, env=environment, check=False).returncode

    assert _run(tmp_path / "whole", tmp_path / "whole.jsonl", 10**9) == 0
    deaths = 0
    while _run(tmp_path / "killed", tmp_path / "killed.jsonl", 25) != 0:
        deaths += 1
        assert not (tmp_path / "killed.jsonl").exists()
        assert deaths < 12
    assert deaths >= 2
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
