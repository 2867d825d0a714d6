from pathlib import Path

import pytest

from dptdr.data.subsample import capped_test
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Qrels, Query


def folder_of(path: Path, qrels: Qrels, *, passages: int = 100) -> BeirFolder:
    write_beir(
        path,
        passages=[Passage(f"p{n}", f"text {n}") for n in range(passages)],
        queries=[Query(f"q{n}", f"query {n}") for n in range(40)],
        qrels={"test": qrels},
        meta={},
    )
    return BeirFolder(path)


ONE_EACH = {f"q{n}": {f"p{n}": 1, f"p{n + 40}": 0} for n in range(40)}


def test_the_set_holds_every_judged_passage_and_is_filled_up_with_others(tmp_path: Path):
    found = capped_test(folder_of(tmp_path / "d", ONE_EACH), test_queries=10, passages=35, seed=0)

    judged = {passage_id for grades in found.qrels.values() for passage_id in grades}
    ids = [passage.id for passage in found.passages]
    assert len(found.queries) == 10
    assert len(ids) == len(set(ids)) == 35
    assert len(judged) == 20
    assert judged < set(ids)
    assert found.qrels.keys() == {query.id for query in found.queries}
    assert ids == sorted(ids, key=lambda name: int(name[1:]))
    assert found.queries_of_split == 40
    assert found.dropped_for_room == 0


def test_the_seed_alone_decides(tmp_path: Path):
    folder = folder_of(tmp_path / "d", ONE_EACH)
    first = capped_test(folder, test_queries=10, passages=35, seed=0)

    assert capped_test(folder, test_queries=10, passages=35, seed=0) == first
    other = capped_test(folder, test_queries=10, passages=35, seed=1)
    assert other.qrels != first.qrels
    assert other.passages != first.passages


def test_fewer_queries_are_kept_when_their_passages_do_not_fit_and_that_is_said(tmp_path: Path):
    found = capped_test(folder_of(tmp_path / "d", ONE_EACH), test_queries=30, passages=15, seed=0)

    assert len(found.queries) == 7
    assert found.dropped_for_room == 23
    assert len(found.passages) == 15


def test_a_small_folder_is_returned_whole(tmp_path: Path):
    folder = folder_of(tmp_path / "d", ONE_EACH)
    found = capped_test(folder, test_queries=500, passages=4000, seed=0)

    assert found.queries == list(folder.queries())
    assert found.passages == list(folder.passages())
    assert found.qrels == folder.qrels("test")
    assert found.dropped_for_room == 0


def test_queries_without_a_positive_are_passed_over(tmp_path: Path):
    folder = folder_of(tmp_path / "d", {"q0": {"p0": 0}, "q1": {"p1": 2}})
    found = capped_test(folder, test_queries=5, passages=10, seed=0)

    assert found.qrels == {"q1": {"p1": 2}}
    assert found.queries_of_split == 1


def test_judgements_that_point_nowhere_are_errors(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"test.tsv: judgements of 1 unknown passages, such as 'gone'"
    ):
        capped_test(
            folder_of(tmp_path / "a", {"q0": {"gone": 1}}), test_queries=1, passages=9, seed=0
        )
    with pytest.raises(DataError, match=r"test.tsv: judgement of unknown query 'nobody'"):
        capped_test(
            folder_of(tmp_path / "b", {"nobody": {"p1": 1}}), test_queries=1, passages=9, seed=0
        )


def test_too_little_room_for_one_query_is_an_error(tmp_path: Path):
    folder = folder_of(tmp_path / "d", ONE_EACH)

    with pytest.raises(DataError, match="no queries of split 'test' fit"):
        capped_test(folder, test_queries=1, passages=1, seed=0)
    with pytest.raises(
        ValueError, match="expected test_queries and passages of at least 1, got 0 and 5"
    ):
        capped_test(folder, test_queries=0, passages=5, seed=0)
