"""Mining: union, provenance, filtering, going on after a kill, and what is refused."""

import errno
import json
import os
from dataclasses import replace

import pytest

from dptdr.errors import NegativesError, OutputError
from dptdr.io import resumable
from dptdr.mining.pipeline import mine
from dptdr.mining.quality import measure_removal
from dptdr.mining.settings import FilteringSettings, MiningSettings
from dptdr.mining.statistics import warnings_of

TEXTS = ["zero", "one", "two", "Two ", "four", "ONE", "six", "seven"]


def _mine(world, tmp_path, settings, **changes):
    arguments = {"out": tmp_path / "out.jsonl", "work": tmp_path / "work"}
    statistics = mine(world.inputs, settings, **{**arguments, **changes})
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], statistics


def test_mine_unites_sources_and_keeps_ranks_and_scores_of_each(world, source, tmp_path):
    # Row 5 is a copy of the positive (row 1), row 3 one of row 2.
    made = world(
        texts=TEXTS,
        judgements={"q": {"p1": 1, "p6": 0}},
        runs={"bm25": {"q": [5, 2, 4]}, "own": {"q": [1, 3, 6, 4]}},
    )
    settings = MiningSettings(sources=(source("bm25"), source("own")))
    records, statistics = _mine(made, tmp_path, settings)
    assert records == [
        {
            "query_id": "q",
            "positives": ["p1"],
            "negatives": [
                {
                    "id": "p2",
                    "sources": {"bm25": {"rank": 2, "score": 0.55},
 "own": {"rank": 2, "score": 0.7}},
                },
                {"id": "p4", "sources": {
                    "bm25": {"rank": 3, "score": 0.1}, "own": {"rank": 4, "score": 0.1}}},
                {"id": "p6", "sources": {"own": {"rank": 3, "score": 0.4}}},
            ],
        }
    ]  # fmt: skip
    assert statistics.overlap == {"bm25|own": 2}
    bm25, own = statistics.sources["bm25"], statistics.sources["own"]
    assert (bm25.candidates, bm25.blocked, bm25.negatives, bm25.alone) == (2, 1, 2, 0)
    assert (own.candidates, own.blocked, own.negatives, own.alone) == (3, 1, 3, 1)
    assert own.ranks[:2] == [0, 3]
    # The copy at BM25's rank 1 counts as the positive: nothing is above it.
    assert (bm25.with_positive, bm25.above_positive) == (2, 0)


def test_mine_takes_rank_windows_and_quotas_of_each_source(world, source, tmp_path):
    made = world(
        texts=[f"text {row}" for row in range(20)],
        judgements={"q": {"p19": 1}},
        runs={"a": {"q": list(range(10))}, "b": {"q": list(range(9, -1, -1))}},
    )
    settings = MiningSettings(
        sources=(
            source("a", range_min=3, range_max=5, num_negatives=2),
            source("b", range_min=1, range_max=10, num_negatives=1),
        )
    )
    records, _ = _mine(made, tmp_path, settings)
    found = {item["id"]: item["sources"] for item in records[0]["negatives"]}
    assert set(found) == {"p2", "p3", "p9"}
    # Provenance tells of every source that ranks it within its depth, and of no other.
    assert {name: entry["rank"] for name, entry in found["p3"].items()} == {"a": 4, "b": 7}
    assert list(found["p9"]) == ["b"]


def test_mine_fills_quotas_from_further_down_where_the_teacher_drops(
    world, source, make_teacher, tmp_path
):
    teacher = make_teacher({("q", 0): 0.9, ("q", 7): 0.8, ("q", 2): 0.85, ("q", 4): 0.5})
    made = world(
        texts=TEXTS,
        judgements={"q": {"p0": 1}},
        runs={"bm25": {"q": [7, 4, 2, 6, 1]}},
        teacher=teacher,
    )
    settings = MiningSettings(
        sources=(source("bm25", num_negatives=2),), filtering=FilteringSettings(absolute_margin=0.2)
    )
    records, statistics = _mine(made, tmp_path, settings)
    assert [(n["id"], n["teacher"]) for n in records[0]["negatives"]] == [("p4", 0.5), ("p6", 0.0)]
    assert records[0]["positive_teacher"] == [0.9]
    # First the positive, then the quota, then one at a time; row 1 is never looked at.
    assert teacher.asked == [("q", 0), ("q", 7), ("q", 4), ("q", 2), ("q", 6)]
    assert statistics.sources["bm25"].dropped == {"absolute_margin": 2}
    (first, second) = statistics.examples.values()
    assert {first["dropped_id"], second["dropped_id"]} == {"p7", "p2"}
    assert (first["query"], first["positive"], first["reason"]) == (
        "text of q",
        "zero",
        "absolute_margin",
    )


def test_mine_keeps_all_with_scores_where_no_bound_is_set(world, source, make_teacher, tmp_path):
    made = world(
        texts=TEXTS,
        judgements={"q": {"p0": 1}},
        runs={"bm25": {"q": [7, 4]}},
        teacher=make_teacher({("q", 7): 5.0}),
    )
    records, _ = _mine(made, tmp_path, MiningSettings(sources=(source("bm25"),)))
    assert [n["teacher"] for n in records[0]["negatives"]] == [5.0, 0.0]


def _many(world, source, teacher=None):
    made = world(
        texts=[f"text {row}" for row in range(60)],
        judgements={f"q{n}": {f"p{n}": 1} for n in range(30)},
        runs={
            "a": {f"q{n}": [(n * 7 + k) % 60 for k in range(40)] for n in range(30)},
            "b": {f"q{n}": [(n * 3 + 2 * k) % 60 for k in range(30)] for n in range(28)},
        },
        teacher=teacher,
    )
    settings = MiningSettings(
        sources=(
            source("a", sampling="score", num_negatives=6),
            source("b", sampling="uniform", num_negatives=5),
        ),
        filtering=FilteringSettings(relative_margin=0.1) if teacher else FilteringSettings(),
        block_queries=8,
    )
    return made, settings


def _teacher_scores():
    return {(f"q{n}", row): (n * 31 + row * 17) % 101 / 100 for n in range(30) for row in range(60)}


def test_mine_goes_on_after_a_kill_with_the_same_bytes_and_counts(
    world, source, make_teacher, tmp_path
):
    made, settings = _many(world, source, make_teacher(_teacher_scores()))
    _, whole = _mine(made, tmp_path, settings)
    expected = (tmp_path / "out.jsonl").read_bytes()

    failing = make_teacher(_teacher_scores(), fail_at=300)
    broken = replace(made.inputs, teacher=failing)
    arguments = {"work": tmp_path / "second"}
    out = tmp_path / "again.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mine(broken, settings, out=out, **arguments)
    assert not out.exists()
    state = json.loads((tmp_path / "second" / "state.json").read_text())
    assert 0 < state["blocks"] < 4
    # A kill in the middle of a write leaves bytes behind the last state.
    with (tmp_path / "second" / "mined.jsonl").open("ab") as handle:
        handle.write(b'{"query_id": "half a li')

    rest = make_teacher(_teacher_scores())
    resumed = mine(replace(made.inputs, teacher=rest), settings, out=out, **arguments)
    assert out.read_bytes() == expected
    assert resumed.as_json() == whole.as_json()
    assert not any(query in {"q0", "q1", "q2", "q3"} for query, _ in rest.asked)


def test_mine_refuses_to_go_on_with_damaged_bytes(world, source, make_teacher, tmp_path):
    made, settings = _many(world, source, make_teacher(_teacher_scores(), fail_at=300))
    arguments = {"out": tmp_path / "o", "work": tmp_path / "w"}
    with pytest.raises(KeyboardInterrupt):
        mine(made.inputs, settings, **arguments)
    damaged = (tmp_path / "w" / "mined.jsonl").read_bytes()
    (tmp_path / "w" / "mined.jsonl").write_bytes(damaged.replace(b"p1", b"pX"))
    with pytest.raises(NegativesError, match="the file was modified since it was written"):
        mine(made.inputs, settings, **arguments)
    assert not (tmp_path / "o").exists()


def test_an_output_in_the_way_is_one_error_that_names_it(world, source, tmp_path):
    made, settings = _many(world, source)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "other").touch()
    with pytest.raises(OutputError, match=r"/o: cannot be written \("):
        mine(made.inputs, settings, out=tmp_path / "o", work=tmp_path / "w")


def test_a_full_disk_while_mining_keeps_what_was_written(world, source, tmp_path, monkeypatch):
    made, settings = _many(world, source)
    settings = replace(settings, block_queries=7)
    mine(made.inputs, settings, out=tmp_path / "whole", work=tmp_path / "other")
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    arguments = {"out": tmp_path / "o", "work": tmp_path / "w"}
    monkeypatch.setattr(resumable.os, "fsync", full)
    with pytest.raises(OutputError, match=r"mined\.jsonl: .*No space left.*make room, then run"):
        mine(made.inputs, settings, **arguments)
    monkeypatch.undo()
    assert not (tmp_path / "o").exists()
    mine(made.inputs, settings, **arguments)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_mine_gives_other_draws_for_another_seed_and_the_same_whatever_the_blocks(
    world, source, tmp_path
):
    made, settings = _many(world, source)
    first, _ = _mine(made, tmp_path, settings, work=tmp_path / "1")
    other_blocks, _ = _mine(made, tmp_path, replace(settings, block_queries=7), work=tmp_path / "2")
    other_seed, _ = _mine(made, tmp_path, replace(settings, seed=1), work=tmp_path / "3")
    assert first == other_blocks
    assert first != other_seed


def test_mine_reports_sources_without_candidates_and_queries_without_negatives(
    world, source, tmp_path
):
    made = world(
        texts=TEXTS,
        judgements={"q": {"p1": 1}, "r": {"p2": 1}, "gone": {"p99": 1}, "zero": {"p1": 0}},
        runs={"a": {"q": [1, 5], "r": [2]}, "b": {"q": [0]}, "c": {"q": []}},
    )
    sources = (source("a", range_max=9), source("b"), source("c"))
    settings = MiningSettings(sources=sources)
    records, statistics = _mine(made, tmp_path, settings)
    assert [(r["query_id"], len(r["negatives"])) for r in records] == [("q", 1), ("r", 0)]
    assert warnings_of(statistics, settings) == [
        "source 'a' finds only positives at ranks 1 to 9; widen its ranks or remove it",
        "source 'c' finds nothing at ranks 1 to 200; widen its ranks or remove it",
        "1 queries have no candidates left, such as 'r'; widen the ranks or relax the "
        "teacher's bounds",
        "2 judged queries have no positive in the corpus, or none of the least grade, and were "
        "skipped",
    ]


def test_mine_without_any_negative_fails_and_keeps_an_old_file(world, source, tmp_path):
    made = world(texts=TEXTS, judgements={"q": {"p1": 1}}, runs={"a": {"q": [1, 5]}})
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(NegativesError, match="no negatives found for any of the 1 queries"):
        _mine(made, tmp_path, MiningSettings(sources=(source("a"),)))
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_mine_refuses_a_run_over_other_queries(world, source, tmp_path):
    made = world(texts=TEXTS, judgements={"q": {"p1": 1}}, runs={"a": {"other": [1, 5]}})
    with pytest.raises(NegativesError, match="source 'a' ranks none of the 1 judged queries"):
        _mine(made, tmp_path, MiningSettings(sources=(source("a"),)))


def test_mine_writes_tevatron_with_texts_and_leaves_out_queries_without_negatives(
    world, source, tmp_path
):
    made = world(
        texts=TEXTS, judgements={"q": {"p1": 1}, "r": {"p2": 1}}, runs={"a": {"q": [4], "r": [2]}}
    )
    records, _ = _mine(made, tmp_path, MiningSettings(sources=(source("a"),), output="tevatron"))
    assert records == [
        {
            "query_id": "q",
            "query": "text of q",
            "positive_passages": [{"docid": "p1", "title": "", "text": "one"}],
            "negative_passages": [{"docid": "p4", "title": "", "text": "four"}],
        }
    ]


def test_measure_removal_counts_hidden_positives_that_were_dropped(world, source, make_teacher):
    # Known: p0 (grade 3). Hidden: p1 (dropped), p2 (kept). Others: p4 (dropped), p6 (kept), and
    # p7, which no source ranks.
    teacher = make_teacher({("q", 0): 0.8, ("q", 1): 0.9, ("q", 2): 0.1, ("q", 4): 0.9})
    made = world(
        texts=TEXTS,
        judgements={"q": {"p2": 2, "p0": 3, "p1": 2, "p4": 0, "p6": 1, "p7": 2}},
        runs={"a": {"q": [0, 1, 2, 4, 6]}},
        teacher=teacher,
    )
    settings = MiningSettings(
        sources=(source("a"),), filtering=FilteringSettings(relative_margin=0.05), min_grade=2
    )
    found = measure_removal(made.inputs, settings).as_json()
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert (found["judged_candidates"], found["false_negatives"], found["queries"]) == (4, 2, 1)
    assert found["by_grade"] == {
        "0": {"dropped": 1, "judged": 1},
        "1": {"dropped": 0, "judged": 1},
        "2": {"dropped": 1, "judged": 2},
    }


def test_measure_removal_says_why_it_cannot(world, source, make_teacher):
    arguments = {"texts": TEXTS, "judgements": {"q": {"p0": 1}}, "runs": {"a": {"q": [4]}}}
    settings = MiningSettings(sources=(source("a"),))
    inputs = world(**arguments).inputs
    with pytest.raises(NegativesError, match="expected a teacher"):
        measure_removal(inputs, settings)
    with pytest.raises(NegativesError, match="no candidate is judged"):
        measure_removal(replace(inputs, teacher=make_teacher({})), settings)
