import pytest

from dptdr.errors import VectorsError, WrongPrompt
from dptdr.records import Passage, Query
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import build_index
from dptdr.search.retrieve import retrieve
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import encode_folder

PASSAGES = [Passage(f"d{n}", f"w{n % 4} w{n % 7} w{n % 5}") for n in range(30)]
QUERIES = [Query("q1", "w1 w2"), Query("q2", "w6")]


@pytest.fixture
def index(make_encoder, tmp_path):
    folder = encode_folder(
        make_encoder(), PASSAGES, out=tmp_path / "v", source=Source(fingerprint="f")
    )
    return build_index(folder, out=tmp_path / "i", index_type="exact")[0]


def test_searching_an_exact_index_equals_retrieval_in_memory(index, encoder):
    run = search_queries(
        index,
        encoder,
        queries=QUERIES,
        depth=8,
    )
    expected = retrieve(encoder, queries=QUERIES, passages=PASSAGES, depth=8)
    assert list(run) == list(expected)
    for name, hits in expected.items():
        # Another kernel may round another way.
        assert [hit.passage_id for hit in run[name]] == [hit.passage_id for hit in hits]
        scores = [hit.score for hit in hits]
        assert [hit.score for hit in run[name]] == pytest.approx(scores, abs=1e-6)


def test_another_prompt_is_refused_with_both_fingerprints_and_what_to_do(index, make_encoder):
    with pytest.raises(WrongPrompt) as caught:
        search_queries(index, make_encoder(prompt="p2"), queries=QUERIES, depth=1)
    message = str(caught.value)
    assert "passage-b1-p1" in message
    assert "passage-b1-p2" in message
    assert "a different prompt on the same backbone" in message
    assert "dptdr index VECTORS --refresh INDEX" in message


def test_another_backbone_is_refused_by_name(index, make_encoder):
    with pytest.raises(WrongPrompt, match=r"a different backbone .backbone-b1, not backbone-b2"):
        search_queries(index, make_encoder(backbone="b2"), queries=QUERIES, depth=1)


def test_a_query_only_task_searches_the_bare_backbones_vectors(index, make_encoder):
    task = make_encoder()
    task.query_fingerprint = "tuned"
    assert len(search_queries(index, task, queries=QUERIES, depth=3)["q1"]) == 3


def test_doubled_query_ids_are_refused(index, encoder):
    with pytest.raises(VectorsError, match="duplicate query id 'q1'; pass each query once"):
        search_queries(index, encoder, queries=[QUERIES[0]] * 2, depth=1)
