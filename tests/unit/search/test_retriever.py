import numpy as np
import pytest

from dptdr.errors import DataError, VectorsError
from dptdr.records import Document, Hit, Passage, Query
from dptdr.search.hybrid import fuse
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.retriever import SearchIndex
from dptdr.search.vectors.documents import Filter, Source
from dptdr.search.vectors.encoding import encode_folder

DOCUMENTS = [
    Document(Passage("cats", "cats sleep and hunt mice"), {"kind": "animal"}),
    Document(Passage("dogs", "dogs bark and chase cats"), {"kind": "animal"}),
    Document(Passage("tea", "tea is brewed below boiling"), {"kind": "drink"}),
    Document(Passage("sun", "the sun is a star")),
]
QUERIES = [Query("q1", "cats mice"), Query("q2", "brewed tea")]


@pytest.fixture
def index(encoder, tmp_path):
    folder = encode_folder(encoder, DOCUMENTS, out=tmp_path / "v", source=Source(fingerprint="f"))
    settings = BuildSettings(bm25=True)
    return build_index(folder, out=tmp_path / "i", index_type="exact", settings=settings)[0]


def test_without_more_stages_it_is_the_dense_search(index, encoder):
    run = SearchIndex(index, encoder).run(QUERIES, depth=2)
    assert run == search_queries(index, encoder, queries=QUERIES, depth=2)


def test_hybrid_search_is_the_fusion_of_both_rankings(index, encoder):
    pipeline = SearchIndex(index, encoder, hybrid="min-max", dense_weight=0.3)
    dense = search_queries(index, encoder, queries=QUERIES, depth=100)
    words = index.lexical().search(QUERIES, depth=100)
    expected = fuse([dense, words], fusion="min-max", weights=(0.3, 0.7), depth=3)
    assert pipeline.run(QUERIES, depth=3) == expected


def test_a_filter_holds_for_both_rankings(index, encoder):
    pipeline = SearchIndex(index, encoder, hybrid="rrf")
    run = pipeline.run([Query("q", "cats tea sun")], depth=4, filters=[Filter("kind", ("drink",))])
    assert [hit.passage_id for hit in run["q"]] == ["tea"]


def test_a_rare_filter_keeps_all_its_passages_in_both_rankings(encoder, tmp_path):
    from dptdr.search.retriever import _FUSED_DEPTH
    from dptdr.serving.searching import ServedIndex

    # Behind a thousand and more passages that BM25 likes better.
    many = [Document(Passage(f"m{n}", "cats"), {"lang": "en"}) for n in range(12 * _FUSED_DEPTH)]
    few = [
        Document(Passage(name, f"{name} with many other words and {text}"), {"lang": "de"})
        for name, text in (("a", "one sun"), ("b", "the cats"), ("c", "a star"))
    ]
    folder = encode_folder(
        encoder, [*many, *few], out=tmp_path / "v", source=Source(fingerprint="f")
    )
    index, _ = build_index(
        folder, out=tmp_path / "i", index_type="exact", settings=BuildSettings(bm25=True)
    )
    german = [Filter("lang", ("de",))]
    query = Query("q", "cats")
    dense = search_queries(index, encoder, queries=[query], depth=3, filters=german)
    rankings = [dense, {"q": [Hit("b", 1.0)]}]

    found = SearchIndex(index, encoder, hybrid="rrf").run([query], depth=3, filters=german)["q"]
    served = ServedIndex(tmp_path / "i").search(
        encoder.encode_queries(["cats"])[0], depth=3, text="cats", fusion="rrf", filters=german
    )

    assert found == fuse(rankings, fusion="rrf", weights=(0.5, 0.5), depth=3)["q"]
    # With the same scores.
    assert [(hit.id, hit.score) for hit in served] == found


def test_the_scorer_sees_contents_and_has_the_last_word(index, encoder):
    def shortest_first(query, texts):
        return [-float(len(text)) for text in texts]

    run = SearchIndex(index, encoder, scorer=shortest_first, rerank_top=4).run(QUERIES, depth=2)
    assert [hit.passage_id for hit in run["q1"]] == ["sun", "cats"]
    assert run["q1"][0] == Hit("sun", -17.0)


def test_tuning_sets_the_weight(index, encoder):
    pipeline = SearchIndex(index, encoder, hybrid="min-max")
    tuned = pipeline.tune(QUERIES, {"q1": {"cats": 1}, "q2": {"tea": 1}})
    assert pipeline.dense_weight == tuned.weights[0]
    assert tuned.value == max(tuned.tried.values())


def test_a_querys_own_passage_scales_no_score_in_the_search_as_in_tuning(index, encoder):
    query = Query("cats", "cats sleep and hunt mice")
    pipeline = SearchIndex(index, encoder, hybrid="min-max", dense_weight=0.3)
    rankings = [
        {"cats": [hit for hit in run["cats"] if hit.passage_id != "cats"]}
        for run in (
            search_queries(index, encoder, queries=[query], depth=100),
            index.lexical().search([query], depth=100),
        )
    ]
    expected = fuse(rankings, fusion="min-max", weights=(0.3, 0.7), depth=3)
    found = pipeline.run([query], depth=3)
    assert found == expected
    tuned = pipeline.tune([query], {"cats": {"dogs": 1}})
    rank = [hit.passage_id for hit in found["cats"]].index("dogs")
    assert tuned.tried[0.3, 0.7] == pytest.approx(1 / np.log2(rank + 2))


def test_an_answer_with_its_querys_id_is_refused_by_search_and_tuning(index, encoder):
    query, qrels = Query("cats", "who hunts mice?"), {"cats": {"cats": 1}}
    pipeline = SearchIndex(index, encoder, hybrid="min-max")
    for search in (
        lambda: pipeline.run([query], depth=3, qrels=qrels),
        lambda: SearchIndex(index, encoder).run([query], depth=3, qrels=qrels),
        lambda: pipeline.tune([query], qrels),
    ):
        with pytest.raises(DataError, match=r"query 'cats' has the id .*--keep-identical"):
            search()
    run = pipeline.run([query], depth=4, qrels=qrels, keep_identical=True)
    assert "cats" in [hit.passage_id for hit in run["cats"]]


def test_tuning_without_a_fusion_and_unknown_fusions_are_refused(index, encoder):
    with pytest.raises(VectorsError, match="expected a hybrid search to tune, got a dense one"):
        SearchIndex(index, encoder).tune(QUERIES, {})
    with pytest.raises(VectorsError, match="one of rrf, min-max, z-score, got 'sum'"):
        SearchIndex(index, encoder, hybrid="sum")


def test_an_index_without_words_says_how_to_get_them(encoder, tmp_path):
    folder = encode_folder(encoder, DOCUMENTS, out=tmp_path / "v", source=Source(fingerprint="f"))
    index, _ = build_index(folder, out=tmp_path / "i", index_type="exact")
    with pytest.raises(VectorsError, match="build one with `dptdr index --bm25`"):
        SearchIndex(index, encoder, hybrid="rrf")
