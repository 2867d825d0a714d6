"""Every index, local or in a database, with filters and fusion, against plain numpy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dptdr.errors import NoSuchField
from dptdr.records import Document, Hit, Passage, Query
from dptdr.search.hybrid import FUSIONS, fuse
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.retriever import SearchIndex
from dptdr.search.vectors.documents import Filter, Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from helpers.encoders import HashEncoder

COUNT = 400
WORDS = [f"w{n}" for n in range(30)]
TYPES = ("exact", "hnsw", "hnsw-sq", "ivf-sq", "rabitq")
EXAMPLES = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
ENCODER = HashEncoder(dim=32)


def documents():
    """Return passages of few words, so that many share some; fields are common and rare."""
    generator = np.random.default_rng(5)
    made = []
    for row in range(COUNT):
        words = generator.choice(WORDS, size=generator.integers(1, 7))
        metadata = {
            "lang": "de" if row % 50 == 3 else "en",
            "tags": [f"t{tag}" for tag in sorted({row % 3, row % 7})],
            "a.b": row % 4,
            "number": [1e-07, 1.5e300, 2.0, None][row % 4],
        }
        if row % 5 == 0:
            metadata |= {"with space": True, "ü": "x" if row % 10 else "y"}
        made.append(Document(Passage(f"p{row}", " ".join(words)), metadata))
    return made


DOCUMENTS = documents()
VECTORS = ENCODER.encode_passages([document.passage.content for document in DOCUMENTS])
FILTERS = st.sampled_from(
    [
        [],
        [Filter("lang", ("de",))],
        [Filter("lang", ("en",))],
        [Filter("tags", ("t0", "t6"))],
        [Filter("a.b", ("2",))],
        [Filter("with space", ("true",))],
        [Filter("ü", ("y",)), Filter("tags", ("t0",))],
        [Filter("lang", ("de",)), Filter("a.b", ("9",))],
        [Filter("number", ("1e-07", "2.0"))],
        [Filter("number", ("0.0000001",))],
        [Filter("number", ("null",))],
    ]
)
QUERIES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return encode_folder(
        ENCODER,
        DOCUMENTS,
        out=tmp_path_factory.mktemp("laws") / "v",
        source=Source(fingerprint="f"),
        settings=EncodeSettings(shard_size=90),
    )


@pytest.fixture(scope="module")
def indexes(folder, tmp_path_factory):
    """Every local type, and Qdrant where its client is installed."""
    at = tmp_path_factory.mktemp("indexes")
    found = {
        kind: build_index(
            folder,
            out=at / kind,
            index_type=kind,
            settings=BuildSettings(bm25=True, threads=1),
        )[0]
        for kind in TYPES
    }
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        return found
    from dptdr.search.stores.qdrant import load_qdrant

    return found | {"qdrant": load_qdrant(folder, client=QdrantClient(":memory:"), name="laws")}


def allowed(filters):
    """Return the rows that all filters keep."""
    return [
        row
        for row, (_, metadata) in enumerate(DOCUMENTS)
        if all(condition.keeps(metadata) for condition in filters)
    ]


def best(text, rows):
    """Rank rows by dot product; ties go to the lower row."""
    scores = VECTORS[rows] @ ENCODER.encode_queries([text])[0]
    order = np.argsort(-scores, kind="stable")
    return [Hit(f"p{rows[place]}", float(scores[place])) for place in order]


@pytest.mark.parametrize("kind", [*TYPES, "qdrant"])
@EXAMPLES
@given(text=QUERIES, depth=st.integers(1, COUNT + 50), filters=FILTERS)
def test_a_search_returns_as_many_as_there_are_and_only_what_the_filters_keep(
    indexes, kind, text, depth, filters
):
    if kind not in indexes:
        pytest.skip("the extra 'qdrant' is not installed")
    rows = allowed(filters)
    run = search_queries(
        indexes[kind], ENCODER, queries=[Query("q", text)], depth=depth, filters=filters
    )
    hits = run["q"]

    ids = [hit.passage_id for hit in hits]
    assert len(set(ids)) == len(ids) == min(depth, len(rows))
    assert set(ids) <= {f"p{row}" for row in rows}
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    if kind in ("exact", "qdrant"):
        expected = best(text, rows)[: len(ids)]
        np.testing.assert_allclose(scores, [hit.score for hit in expected], atol=1e-5)
        # Passages with the same words tie, and then any of them may be at the cut.
        clear = {hit.passage_id for hit in expected if hit.score > scores[-1] + 1e-5}
        assert clear <= set(ids)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@EXAMPLES
@given(
    text=QUERIES,
    depth=st.integers(1, 60),
    filters=FILTERS,
    fusion=st.sampled_from(FUSIONS),
    weight=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_a_hybrid_search_is_the_fusion_of_both_filtered_rankings(
    indexes, kind, text, depth, filters, fusion, weight
):
    index, query = indexes[kind], Query("q", text)
    rows = {f"p{row}" for row in allowed(filters)}
    # Beyond the depth of the fusion, the two rankings must be cut alike; all here are short.
    whole = index.lexical().search([query], depth=COUNT)["q"]
    words = [hit for hit in whole if hit.passage_id in rows][:100]
    dense = search_queries(index, ENCODER, queries=[query], depth=100, filters=filters)
    expected = fuse(
        [dense, {"q": words}], fusion=fusion, weights=(weight, 1 - weight), depth=depth
    )["q"]

    pipeline = SearchIndex(index, ENCODER, hybrid=fusion, dense_weight=weight)
    found = pipeline.run([query], depth=depth, filters=filters)["q"]

    assert found == expected
    assert {hit.passage_id for hit in found} <= rows


@EXAMPLES
@given(field=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_a_field_that_no_passage_has_is_refused_by_every_index(indexes, field):
    assume(not any(field in metadata for _, metadata in DOCUMENTS))
    for index in (indexes["exact"], indexes.get("qdrant")):
        if index is not None:
            with pytest.raises(NoSuchField, match="field"):
                index.search(VECTORS[:1], depth=3, filters=[Filter(field, ("x",))])
