import json

import numpy as np
import pytest

from dptdr.errors import VectorsError
from dptdr.records import Passage
from dptdr.search.exact import exact_top_k
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.local import open_index
from dptdr.search.indexes.recall import measure_recall
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import encode_folder


@pytest.fixture(scope="module")
def copies_folder(make_table_encoder, tmp_path_factory):
    """Return 2,000 vectors that are near-copies of 10, each 200 times in a row."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal((10, 16))
    table = np.repeat(base, 200, axis=0) + 1e-3 * generator.standard_normal((2000, 16))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return encode_folder(
        make_table_encoder(table),
        [Passage(f"d{row}", str(row)) for row in range(len(table))],
        out=tmp_path_factory.mktemp("copies") / "v",
        source=Source(fingerprint="copies"),
    )


BAD_GRAPH = {"M": 2, "ef_construction": 4, "ef_search": 4}


def test_a_graph_over_near_copies_says_that_it_finds_too_little_and_what_to_raise(
    copies_folder, tmp_path
):
    settings = BuildSettings(threads=1, options=BAD_GRAPH)
    index, choice = build_index(
        copies_folder, out=tmp_path / "i", index_type="hnsw", settings=settings
    )
    assert choice.recall < 0.95
    assert "raise ef_search, ef_construction or M, or use ivf-sq" in choice.warning
    record = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert record["recall@10"] == choice.recall == index.recall


def test_auto_takes_a_better_type_when_a_graph_finds_too_little(
    copies_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("dptdr.search.indexes.types.EXACT_LIMIT", 100)
    real = measure_recall
    monkeypatch.setattr(
        "dptdr.search.indexes.building.measure_recall",
        lambda index, folder, seed: (
            0.42 if index.index_type == "hnsw" else real(index, folder, seed=seed)
        ),
    )
    index, choice = build_index(
        copies_folder, out=tmp_path / "i", settings=BuildSettings(memory_bytes=10**9)
    )
    assert index.index_type == "ivf-sq"
    assert index.recall >= 0.95
    assert choice.reason.startswith("hnsw has recall@10 of only 0.420; 2,000 passages")
    assert open_index(tmp_path / "i").index_type == "ivf-sq"


def test_exact_search_is_not_measured_and_a_good_index_has_no_warning(table_folder, tmp_path):
    index, choice = build_index(table_folder, out=tmp_path / "i", index_type="exact")
    assert (index.recall, choice.warning) == (None, None)
    _, choice = build_index(table_folder, out=tmp_path / "graph", index_type="hnsw")
    assert choice.recall >= 0.95
    assert choice.warning is None


def test_recall_counts_what_exact_search_finds_beside_the_query_itself(table_folder, tmp_path):
    settings = BuildSettings(threads=1, options={"nlist": 60, "nprobe": 1})
    index, choice = build_index(
        table_folder, out=tmp_path / "i", index_type="ivf-sq", settings=settings
    )
    rows = np.sort(np.random.default_rng(1234).choice(3000, size=200, replace=False))
    queries = table_folder.gather(rows)
    everything = table_folder.gather(np.arange(3000))
    _, exact = exact_top_k(queries, everything, depth=11)
    _, found = index.search_rows(queries, depth=11)
    shares = [
        len(set(truth[truth != row]) & set(answer)) / 10
        for row, truth, answer in zip(rows, exact, found, strict=True)
    ]
    assert choice.recall == pytest.approx(np.mean(shares), abs=2e-3)
    assert choice.recall < 0.95


@pytest.mark.parametrize("quantize", ["float16", "int8", "binary", None])
@pytest.mark.parametrize("dimensions", [24, None])
def test_smaller_vectors_are_searched_and_the_best_scored_again_in_full(
    table_folder, table, tmp_path, quantize, dimensions
):
    if quantize is dimensions is None:
        pytest.skip("nothing is made smaller")
    settings = BuildSettings(dimensions=dimensions, quantize=quantize)
    index, choice = build_index(
        table_folder, out=tmp_path / "i", index_type="exact", settings=settings
    )
    # One bit of 32 clustered numbers tells little; what it finds is in the manifest.
    assert choice.recall > (0.35 if quantize == "binary" else 0.9)
    number = {"float16": 2, "int8": 1, "binary": 1 / 8, None: 4}[quantize]
    size = (tmp_path / "i" / "index.bin").stat().st_size
    scales = 4 if quantize == "int8" else 0
    assert size == pytest.approx(3000 * ((dimensions or 32) * number + scales), abs=300)
    found = index.search(table[:20], depth=3)
    rows = np.array([[int(name[1:]) for name in ids] for ids in found.ids])
    expected = np.einsum("qd,qkd->qk", table[:20], table[rows])
    np.testing.assert_allclose(found.scores, expected, atol=2e-6)
    again = open_index(tmp_path / "i")
    assert (again.dim, again.reduction) == (32, (dimensions, quantize))


def test_every_type_takes_fewer_dimensions(table_folder, table, tmp_path):
    for index_type in ("hnsw", "ivf-pq", "rabitq"):
        settings = BuildSettings(dimensions=24, threads=1)
        out = tmp_path / index_type
        build_index(table_folder, out=out, index_type=index_type, settings=settings)
        index = open_index(out)
        assert index.rows.index.d == 24
        found = index.search(table[:50], depth=1)
        assert np.mean([ids == [f"d{row}"] for row, ids in enumerate(found.ids)]) > 0.9


@pytest.mark.parametrize(
    ("index_type", "settings", "message"),
    [
        ("exact", {"dimensions": 0}, "option dimensions: expected a number from 1 to 31"),
        ("hnsw", {"dimensions": 32}, "from 1 to 31 .vectors have 32., got 32"),
        ("exact", {"quantize": "int4"}, "expected one of float16, int8, binary, got 'int4'"),
        ("hnsw", {"quantize": "int8"}, "option quantize has no effect on an index of type hnsw"),
    ],
)
def test_reductions_without_effect_are_refused(
    table_folder, tmp_path, index_type, settings, message
):
    with pytest.raises(VectorsError, match=message):
        build_index(
            table_folder,
            out=tmp_path / "i",
            index_type=index_type,
            settings=BuildSettings(**settings),
        )
    assert not (tmp_path / "i").exists()


def test_filters_hold_over_smaller_vectors(table_folder, table, tmp_path, monkeypatch):
    from dptdr.search.vectors.documents import Filter

    monkeypatch.setattr("dptdr.search.indexes.local._EXACT_WHEN_ALLOWED", 10)
    settings = BuildSettings(quantize="int8")
    index, _ = build_index(table_folder, out=tmp_path / "i", settings=settings)
    found = index.search(table[:5], depth=5, filters=[Filter("lang", ("de",))])
    german = np.arange(0, 3000, 10)
    _, places = exact_top_k(table[:5], table[german], depth=5)
    assert found.ids == [[f"d{row}" for row in german[best]] for best in places]
