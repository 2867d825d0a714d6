import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dptdr.errors import OutputError, VectorsError
from dptdr.search.exact import exact_top_k
from dptdr.search.index import Index
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.local import open_index
from dptdr.search.indexes.row_index import ExactRows
from dptdr.search.vectors.documents import Filter
from dptdr.search.vectors.folder import VectorFolder

LOCAL = ("exact", "hnsw", "hnsw-sq", "ivf-sq", "ivf-pq", "rabitq")
FAISS = LOCAL[1:]
OLD_INDEX = Path(__file__).parents[3] / "golden" / "index_0_1_0"
"""Written by version 0.1.0: 40 vectors, hnsw with links=4, build_width=40, search_width=50."""


@pytest.fixture(scope="module")
def indexes(table_folder, tmp_path_factory):
    built = {}

    def get(kind):
        if kind not in built:
            out = tmp_path_factory.mktemp("index") / kind
            build_index(table_folder, out=out, index_type=kind, settings=BuildSettings(threads=1))
            built[kind] = open_index(out)
        return built[kind]

    return get


@pytest.fixture(scope="module")
def queries(table):
    noise = np.random.default_rng(7).standard_normal((50, table.shape[1])) * 0.05
    return (table[:50] + noise).astype(np.float32)


@pytest.mark.parametrize("kind", LOCAL)
def test_every_kind_finds_nearly_all_of_the_exact_ten(indexes, table, queries, kind):
    index = indexes(kind)
    assert isinstance(index, Index)
    assert (index.index_type, index.count, index.dim) == (kind, 3000, 32)
    found = index.search(queries, depth=10)
    _, rows = exact_top_k(queries, table, depth=10)
    recall = np.mean(
        [len({f"d{row}" for row in best} & set(ids)) / 10
         for best, ids in zip(rows, found.ids, strict=True)]
    )  # fmt: skip
    assert recall >= (1.0 if kind == "exact" else 0.9)


@pytest.mark.parametrize("kind", LOCAL)
def test_scores_are_dot_products_of_the_full_vectors_best_first(indexes, table, queries, kind):
    found = indexes(kind).search(queries, depth=10)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    rows = np.array([[int(name[1:]) for name in ids] for ids in found.ids])
    expected = np.einsum("qd,qkd->qk", queries, table[rows])
    np.testing.assert_allclose(found.scores, expected, atol=2e-6)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_filter_finds_only_what_it_allows_and_all_of_the_best(indexes, table, queries, kind):
    found = indexes(kind).search(queries, depth=5, filters=[Filter("lang", ("de",))])
    german = np.arange(0, 3000, 10)
    _, places = exact_top_k(queries, table[german], depth=5)
    assert found.ids == [[f"d{row}" for row in german[best]] for best in places]


@pytest.mark.parametrize("kind", FAISS)
def test_a_filter_that_leaves_many_is_answered_by_the_index_itself(
    indexes, table, queries, kind, monkeypatch
):
    monkeypatch.setattr("dptdr.search.indexes.local._EXACT_WHEN_ALLOWED", 10)
    found = indexes(kind).search(queries, depth=5, filters=[Filter("lang", ("de",))])
    german = np.arange(0, 3000, 10)
    _, places = exact_top_k(queries, table[german], depth=5)
    hits = 0
    for ids, best in zip(found.ids, places, strict=True):
        assert all(int(name[1:]) % 10 == 0 for name in ids)
        hits += len(set(ids) & {f"d{row}" for row in german[best]})
    assert hits / 250 >= 0.9


@pytest.mark.parametrize("kind", LOCAL)
def test_a_filter_that_leaves_nothing_gives_no_hits(indexes, queries, kind):
    found = indexes(kind).search(queries[:2], depth=5, filters=[Filter("lang", ("fr",))])
    assert found.ids == [[], []]


@pytest.mark.parametrize("kind", LOCAL)
def test_depth_beyond_the_passages_and_no_queries_are_answered(indexes, queries, kind):
    index = indexes(kind)
    for depth in (1000, 5000):
        found = index.search(queries[:2], depth=depth)
        for ids in found.ids:
            assert len(set(ids)) == len(ids) == min(depth, 3000)
        assert np.isfinite(found.scores).all()
    assert index.search(queries[:0], depth=5).ids == []


def test_exact_search_finds_every_passage_when_asked_for_more(indexes, queries):
    assert len(indexes("exact").search(queries[:1], depth=5000).ids[0]) == 3000


def test_texts_are_found_by_id(indexes):
    documents = indexes("hnsw").documents(["d2999", "d0"])
    assert [document.passage.text for document in documents] == ["2999", "0"]
    with pytest.raises(VectorsError, match="no passage with id 'x'"):
        indexes("hnsw").documents(["x"])


def test_bad_query_vectors_are_refused(indexes, queries):
    index = indexes("hnsw")
    with pytest.raises(VectorsError, match="query vectors with 32 dimensions, got 8"):
        index.search(queries[:, :8], depth=1)
    broken = queries[:3].copy()
    broken[1, 0] = np.nan
    with pytest.raises(VectorsError, match="query vector 1 contains NaN"):
        index.search(broken, depth=1)
    with pytest.raises(ValueError, match="depth of at least 1, got 0"):
        index.search(queries, depth=0)


@pytest.mark.parametrize("kind", LOCAL[1:])
def test_one_thread_and_one_seed_give_the_same_index_twice(
    table_folder, tmp_path, indexes, queries, kind
):
    first = indexes(kind)
    again, _ = build_index(
        table_folder, out=tmp_path / "i", index_type=kind, settings=BuildSettings(threads=1)
    )
    assert (again.path / "index.bin").read_bytes() == (first.path / "index.bin").read_bytes()
    assert again.search(queries, depth=10).ids == first.search(queries, depth=10).ids


def test_auto_says_why_and_the_manifest_knows_the_prompt(table_folder, tmp_path):
    index, choice = build_index(table_folder, out=tmp_path / "i")
    assert index.index_type == "exact"
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert manifest["reason"] == choice.reason
    assert manifest["passage_fingerprint"] == "passage-b1-p1"
    assert manifest["backbone_fingerprint"] == "backbone-b1"


def test_the_index_does_not_need_the_vector_folder_any_more(table_folder, tmp_path, queries):
    copy = tmp_path / "v"
    shutil.copytree(table_folder.path, copy)
    build_index(VectorFolder(copy), out=tmp_path / "i", index_type="ivf-sq")
    shutil.rmtree(copy)
    assert len(open_index(tmp_path / "i").search(queries, depth=3).ids) == 50


def test_an_index_file_cut_short_or_damaged_is_refused(table_folder, tmp_path):
    build_index(table_folder, out=tmp_path / "i", index_type="hnsw")
    path = tmp_path / "i" / "index.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(VectorsError, match=rf"expected {len(content)} bytes, got .*truncated"):
        open_index(tmp_path / "i")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VectorsError, match=r"index.bin: expected SHA-256 .*rebuild the index"):
        open_index(tmp_path / "i")
    path.unlink()
    with pytest.raises(VectorsError, match="no such file"):
        open_index(tmp_path / "i")


def test_an_index_of_a_removed_type_names_the_last_version_that_reads_it(table_folder, tmp_path):
    build_index(table_folder, out=tmp_path / "i", index_type="hnsw")
    change_manifest(tmp_path / "i", format_version=1, kind="usearch")
    with pytest.raises(VectorsError, match=r"manifest.json.*was removed; version 0\.1\.0 is the"):
        open_index(tmp_path / "i")


def change_manifest(index, **fields):
    manifest = index / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fields))


def test_an_index_of_version_0_1_0_opens_with_its_options_and_finds(tmp_path):
    shutil.copytree(OLD_INDEX, tmp_path / "i")
    index = open_index(tmp_path / "i")
    assert (index.index_type, index.count) == ("hnsw", 40)
    assert index.options == {"M": 4, "ef_construction": 40, "ef_search": 50}
    found = index.search(index.vectors.gather(np.arange(40)), depth=1)
    assert found.ids == [[f"d{row}"] for row in range(40)]
    # Such manifests list options that had no effect, and 0 for the default.
    change_manifest(tmp_path / "i", options={"links": 4, "lists": 7, "search_width": 0, "seed": 1})
    assert open_index(tmp_path / "i").options == {"M": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nlist": 7}, "manifest.json: option nlist has no effect on an index of type hnsw"),
        ({"ef_search": 10**9}, "option ef_search: expected a number from 1 to 100,000, got 1000"),
        ({"ef_search": "wide"}, "option ef_search: .*got the text 'wide'"),
        (["M"], "field 'options': expected an object, got a list"),
    ],
)
def test_a_manifest_with_options_that_cannot_be_is_refused(
    table_folder, tmp_path, options, message
):
    build_index(table_folder, out=tmp_path / "i", index_type="hnsw")
    change_manifest(tmp_path / "i", options=options)
    with pytest.raises(VectorsError, match=message):
        open_index(tmp_path / "i")


def test_no_index_says_how_to_make_one(tmp_path):
    with pytest.raises(VectorsError, match="create one with `dptdr index`"):
        open_index(tmp_path)


def test_a_full_disk_leaves_the_old_index_as_it_was(table_folder, tmp_path, monkeypatch, queries):
    build_index(table_folder, out=tmp_path / "i", index_type="hnsw")
    before = open_index(tmp_path / "i").search(queries, depth=3).ids

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dptdr.search.indexes.building.write_json", full)
    with pytest.raises(OutputError, match=r"/i: cannot be written .No space left.*make room"):
        build_index(table_folder, out=tmp_path / "i", index_type="ivf-sq", overwrite=True)
    monkeypatch.undo()
    index = open_index(tmp_path / "i")
    assert index.index_type == "hnsw"
    assert index.search(queries, depth=3).ids == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".i.made.json", "i"]


def test_the_same_index_again_is_complete_and_another_one_is_refused(
    table_folder, tmp_path, capsys
):
    out = tmp_path / "i"
    first = build_index(table_folder, out=out)
    written = (out / "manifest.json").read_bytes()
    again = build_index(
        table_folder, out=out, settings=BuildSettings(threads=2, memory_bytes=10**9)
    )
    assert again[1] == first[1]
    assert capsys.readouterr().err == f"{out}: complete, nothing to do\n"
    with pytest.raises(
        OutputError, match="bm25: was False, is True; index_type: was 'auto', is 'hnsw'"
    ):
        build_index(table_folder, out=out, index_type="hnsw", settings=BuildSettings(bm25=True))
    assert (out / "manifest.json").read_bytes() == written
    assert (
        build_index(table_folder, out=out, index_type="hnsw", overwrite=True)[0].index_type
        == "hnsw"
    )


def test_faiss_that_cannot_write_leaves_nothing(table_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dptdr.search.indexes.building.INDEX_FILE", "no/such/folder/index.bin")
    with pytest.raises((OutputError, VectorsError), match=r"cannot write the index"):
        build_index(table_folder, out=tmp_path / "i", index_type="hnsw")
    assert list(tmp_path.iterdir()) == []


def test_options_reach_search_after_opening(table_folder, tmp_path, table, queries):
    few = BuildSettings(options={"nlist": 75, "nprobe": 1})
    all_of_them = BuildSettings(options={"nlist": 75, "nprobe": 75})
    _, rows = exact_top_k(queries, table, depth=10)

    def recall(settings):
        build_index(
            table_folder, out=tmp_path / "i", index_type="ivf-sq", settings=settings, overwrite=True
        )
        found = open_index(tmp_path / "i").search(queries, depth=10)
        pairs = zip(rows, found.ids, strict=True)
        return np.mean([len({f"d{row}" for row in best} & set(ids)) / 10 for best, ids in pairs])

    assert recall(few) < 0.97 < 0.99 < recall(all_of_them)


def test_exact_search_names_the_passage_whose_vector_holds_nan(tmp_path):
    class Folder(VectorFolder):
        def __init__(self):
            self.path = tmp_path

        def blocks(self):
            yield 0, np.ones((3, 4), dtype=np.float32)
            yield 3, np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], dtype=np.float32)

    rows = ExactRows(Folder())
    with pytest.raises(VectorsError, match="the vector in row 4 contains NaN or infinity"):
        rows.search(np.ones((1, 4), dtype=np.float32), depth=1, allowed=None)


def test_the_reason_of_faiss_is_told_without_its_source_lines():
    from dptdr.search.indexes.faiss_index import _reason

    full = (
        "Error in void faiss::write_index(const Index*, IOWriter*, int) at /project/x.cpp:499:"
        " Error: 'ret == (size * 4)' failed: write error in x: 6 != 8 (No space left on device)"
    )
    assert _reason(RuntimeError(full)) == "write error in x: 6 != 8 (No space left on device)"
    assert _reason(RuntimeError("could not open x at /project/y.cpp:3")) == "could not open x"
    assert _reason(RuntimeError()) == "no reason given"
