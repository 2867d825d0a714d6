import pytest

from dptdr.errors import VectorsError
from dptdr.records import Passage, Query
from dptdr.search.retrieve import retrieve

PASSAGES = [
    Passage("d1", "red apple pie"),
    Passage("d2", "blue whale", "ocean"),
    Passage("d3", "red apple pie"),
]


def test_the_passage_that_shares_words_ranks_first_and_ties_keep_the_order(encoder):
    run = retrieve(
        encoder,
        queries=[Query("q1", "ocean blue whale"), Query("q2", "apple pie")],
        passages=PASSAGES,
        depth=2,
    )
    assert run["q1"][0].passage_id == "d2"
    assert run["q1"][0].score == pytest.approx(1.0, abs=1e-6)
    assert [hit.passage_id for hit in run["q2"]] == ["d1", "d3"]


def test_progress_counts_queries_and_passages_together(encoder):
    seen = []
    retrieve(
        encoder,
        queries=[Query("q1", "red")],
        passages=PASSAGES,
        depth=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (4, 4)]


def test_no_passages_give_an_empty_ranking(encoder):
    assert retrieve(encoder, queries=[Query("q1", "x")], passages=[], depth=3) == {"q1": []}


def test_ids_that_stand_twice_are_refused(encoder):
    with pytest.raises(VectorsError, match="duplicate passage id 'd1'"):
        retrieve(encoder, queries=[Query("q1", "x")], passages=[PASSAGES[0]] * 2, depth=1)
    with pytest.raises(VectorsError, match="duplicate query id 'q'"):
        retrieve(encoder, queries=[Query("q", "x"), Query("q", "y")], passages=PASSAGES, depth=1)


def test_depth_below_one_is_refused(encoder):
    with pytest.raises(ValueError, match="depth of at least 1, got 0"):
        retrieve(encoder, queries=[Query("q1", "x")], passages=PASSAGES, depth=0)


def test_a_query_that_is_a_passage_does_not_find_itself(encoder):
    asked = {"queries": [Query("d1", "red apple pie")], "passages": PASSAGES, "depth": 1}
    assert retrieve(encoder, **asked)["d1"][0].passage_id == "d3"
    assert retrieve(encoder, **asked, keep_identical=True)["d1"][0].passage_id == "d1"
