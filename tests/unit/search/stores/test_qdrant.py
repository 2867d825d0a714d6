import numpy as np
import pytest

from dptdr.errors import NoSuchField, VectorsError, WrongPrompt
from dptdr.records import Document, Passage, Query
from dptdr.search.exact import exact_top_k
from dptdr.search.index import Index, search_queries
from dptdr.search.vectors.documents import Filter, Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder

qdrant_client = pytest.importorskip("qdrant_client", reason="the extra 'qdrant' is not installed")

from dptdr.search.stores.qdrant import QdrantIndex, load_qdrant  # noqa: E402


@pytest.fixture
def client():
    opened = qdrant_client.QdrantClient(":memory:")
    yield opened
    opened.close()


def encode(encoder, documents, out):
    return encode_folder(
        encoder,
        documents,
        out=out,
        source=Source(fingerprint=f"data-{len(documents)}"),
        settings=EncodeSettings(shard_size=10),
    )


def best(index, encoder, text, **options):
    run = search_queries(index, encoder, queries=[Query("q", text)], depth=3, **options)
    return [hit.passage_id for hit in run["q"]]


def test_it_is_an_index_that_finds_the_exact_best(client, table_folder, table):
    index = load_qdrant(table_folder, client=client, name="table")
    assert isinstance(index, Index)
    assert (index.index_type, index.count, index.dim) == ("qdrant", 3000, 32)
    found = index.search(table[:10], depth=10)
    scores, rows = exact_top_k(table[:10], table, depth=10)
    assert [set(ids) for ids in found.ids] == [{f"d{row}" for row in best} for best in rows]
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    german = index.search(table[:3], depth=5, filters=[Filter("lang", ("de",))])
    assert all(int(name[1:]) % 10 == 0 for ids in german.ids for name in ids)
    assert index.search(table[:0], depth=5).ids == []
    assert index.search(table[:1], depth=5, filters=[Filter("lang", ("fr",))]).ids == [[]]
    with pytest.raises(NoSuchField, match="no passage has the metadata field 'lnag'"):
        index.search(table[:1], depth=5, filters=[Filter("lnag", ("de",))])


@pytest.fixture
def small(client, make_encoder, tmp_path):
    documents = [
        Document(Passage("a", "red apple"), {"tags": ["fruit", "red"], "year": 1999}),
        Document(Passage("b", "blue sea", "Sea"), {"tags": ["water"], "open": True}),
        Document(Passage("c", "green tea")),
    ]
    return load_qdrant(encode(make_encoder(), documents, tmp_path / "v"), client=client, name="s")


def test_every_filter_means_what_it_means_elsewhere(small, encoder):
    conditions = {"tags=red": ["a"], "year=1999": ["a"], "open=true": ["b"], "year=2": []}
    for text, expected in conditions.items():
        assert best(small, encoder, "red apple", filters=[Filter.parse(text)]) == expected


def test_upsert_adds_and_replaces_and_delete_removes(small, encoder):
    documents = [Document(Passage("c", "red apple")), Document(Passage("d", "new words"))]
    vectors = encoder.encode_passages(["red apple", "new words"])
    for _ in range(2):
        small.upsert(documents, vectors, passage_fingerprint=encoder.passage_fingerprint)
    assert small.count == 4
    assert set(best(small, encoder, "red apple")[:2]) == {"a", "c"}
    with pytest.raises(VectorsError, match="ids: expected a list, got the text 'bc'"):
        small.delete("bc")
    assert small.delete(["a", "unknown"]) == 1
    assert small.count == 3
    assert [document.passage for document in small.documents(["b"])] == [
        Passage("b", "blue sea", "Sea")
    ]
    with pytest.raises(VectorsError, match="no passage with id 'a'"):
        small.documents(["a"])


def test_what_was_changed_is_loaded_again(small, client, encoder, tmp_path):
    from dptdr.search.vectors.folder import VectorFolder

    folder = VectorFolder(tmp_path / "v")
    for _ in range(3):
        small.upsert([], np.zeros((0, 8)), passage_fingerprint=encoder.passage_fingerprint)
        small.upsert(
            [Document(Passage("d", "new words"))],
            encoder.encode_passages(["new words"]),
            passage_fingerprint=encoder.passage_fingerprint,
        )
        assert (small.delete([]), small.delete(["a", "a"]), small.count) == (0, 1, 3)

        small = load_qdrant(folder, client=client, name="s")

        assert [document.passage.id for document in small.documents(["a", "b", "c"])] == list("abc")
        assert small.count == 3
        assert len(client.get_collections().collections) == 1
    with pytest.raises(VectorsError, match="duplicate passage id 'x'; pass each passage once"):
        small.upsert(
            [Document(Passage("x", "one")), Document(Passage("x", "two"))],
            encoder.encode_passages(["one", "two"]),
            passage_fingerprint=encoder.passage_fingerprint,
        )


@pytest.mark.parametrize("taken", ["alias", "collection"])
def test_what_somebody_else_made_is_left_alone(client, encoder, tmp_path, taken):
    models = qdrant_client.models
    size = models.VectorParams(size=4, distance=models.Distance.DOT)
    client.create_collection("theirs", vectors_config=size)
    alias = models.CreateAlias(collection_name="theirs", alias_name="alias")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    name = "alias" if taken == "alias" else "theirs"
    folder = encode(encoder, [Document(Passage("a", "b"))], tmp_path / "v")

    for open_it in (QdrantIndex, lambda c, n: load_qdrant(folder, client=c, name=n)):
        with pytest.raises(VectorsError, match=f"'{name}' is .*dptdr did not create"):
            open_it(client, name)

    assert [c.name for c in client.get_collections().collections] == ["theirs"]
    for wrong in ("", "a/b", "a\nb", "x" * 201):
        with pytest.raises(VectorsError, match="expected an index name of 1 to 200 characters"):
            load_qdrant(folder, client=client, name=wrong)


def test_fields_with_dots_and_spaces_are_filtered_as_elsewhere(client, make_encoder, tmp_path):
    names = ["a.b", "with space", "list[]", "ü", 'a"b', '"', 'a"."b']
    documents = [Document(Passage(f"p{n}", "word"), {name: "x"}) for n, name in enumerate(names)]
    encoder = make_encoder()
    index = load_qdrant(encode(encoder, documents, tmp_path / "v"), client=client, name="f")
    for number, name in enumerate(names):
        assert best(index, encoder, "word", filters=[Filter(name, ("x",))]) == [f"p{number}"]
    assert index.documents(["p4"])[0].metadata == {'a"b': "x"}
    with pytest.raises(NoSuchField, match="no passage has the metadata field"):
        best(index, encoder, "word", filters=[Filter('a"c', ("x",))])


@pytest.mark.parametrize(
    "document",
    [
        Document(Passage("x", "a\ud800")),
        Document(Passage("x\ud800", "a")),
        Document(Passage("x", "a"), {"k": ["\ud800"]}),
    ],
)
def test_what_is_not_unicode_is_refused_by_name(small, encoder, document):
    with pytest.raises(VectorsError, match=r"passage 'x.*expected valid Unicode, got a lone surr"):
        small.upsert(
            [document],
            encoder.encode_passages(["a"]),
            passage_fingerprint=encoder.passage_fingerprint,
        )


def test_vectors_of_another_prompt_are_refused(small, make_encoder):
    other = make_encoder(prompt="p2")
    with pytest.raises(WrongPrompt, match="passage-b1-p1, got passage-b1-p2"):
        small.upsert(
            [Document(Passage("x", "y"))],
            other.encode_passages(["y"]),
            passage_fingerprint=other.passage_fingerprint,
        )
    with pytest.raises(WrongPrompt, match="got passage-b1-p2 of 'double'"):
        best(small, other, "red apple")


def test_points_carry_the_fingerprint_of_what_made_them(small, client):
    points, _ = client.scroll("s", limit=10)
    assert {point.payload["passage_fingerprint"] for point in points} == {"passage-b1-p1"}


def passages(count):
    return [Passage(f"d{n}", f"word{n} common") for n in range(count)]


def test_a_stop_while_loading_leaves_the_old_one_serving_and_goes_on_later(
    client, make_encoder, tmp_path, monkeypatch
):
    encoder = make_encoder()
    load_qdrant(encode(encoder, passages(15), tmp_path / "old"), client=client, name="n")
    folder = encode(encoder, passages(50), tmp_path / "new")

    def stop(done, total):
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_qdrant(folder, client=client, name="n", batch_rows=10, on_progress=stop)
    assert QdrantIndex(client, "n").count == 15
    sent = []
    real = client.upsert
    monkeypatch.setattr(
        client, "upsert", lambda name, points: (sent.append(len(points)), real(name, points))
    )
    index = load_qdrant(folder, client=client, name="n", batch_rows=10)
    assert sent == [10, 10]
    assert index.count == 50
    assert "d40" in best(index, encoder, "word40 common")
    assert len(client.get_collections().collections) == 1


def test_a_broken_connection_is_tried_again_and_doubles_nothing(
    client, make_encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("dptdr.search.stores.qdrant._FIRST_PAUSE_SECONDS", 0.001)
    real = client.upsert
    calls = []

    def breaks(name, points):
        calls.append(len(points))
        real(name, points)
        if len(calls) in (2, 3):
            # Sent, but the answer was lost on the way.
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(client, "upsert", breaks)
    folder = encode(make_encoder(), passages(30), tmp_path / "v")
    index = load_qdrant(folder, client=client, name="n", batch_rows=10)
    assert calls == [10] * 5
    assert index.count == 30


def test_qdrant_that_is_away_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("dptdr.search.stores.qdrant._FIRST_PAUSE_SECONDS", 0.001)
    away = qdrant_client.QdrantClient("http://127.0.0.1:9", check_compatibility=False, timeout=1)
    with pytest.raises(VectorsError, match=r"no response after 4 tries.*check that it is running"):
        QdrantIndex(away, "n")
    away.close()


def test_a_name_that_is_not_there_says_so(client):
    with pytest.raises(VectorsError, match="no index 'nothing'"):
        QdrantIndex(client, "nothing")


def test_options_reach_a_server_and_are_refused_where_they_have_no_effect(
    client, make_encoder, tmp_path, monkeypatch
):
    folder = encode(make_encoder(), passages(5), tmp_path / "v")
    with pytest.raises(VectorsError, match="qdrant in a folder, which takes no options"):
        load_qdrant(folder, client=client, name="n", options={"M": 8})
    monkeypatch.setattr("dptdr.search.stores.qdrant._is_local", lambda client: False)
    with pytest.raises(VectorsError, match="option nlist has no effect on an index of type qdrant"):
        load_qdrant(folder, client=client, name="n", options={"nlist": 8})
    real, sent = client.create_collection, []
    monkeypatch.setattr(
        client, "create_collection", lambda *a, **k: (sent.append(k["hnsw_config"]), real(*a, **k))
    )
    load_qdrant(folder, client=client, name="n", options={"M": 8, "ef_construction": 50})
    assert (sent[0].m, sent[0].ef_construct) == (8, 50)
    real_update, updated = client.update_collection, []
    monkeypatch.setattr(
        client,
        "update_collection",
        lambda *a, **k: (updated.append(k), real_update(*a, **k)),
    )
    load_qdrant(folder, client=client, name="n", options={"M": 9})
    assert [change["hnsw_config"].m for change in updated] == [9]


def test_a_folder_of_another_kind_is_refused_and_none_is_created(encoder, tmp_path):
    from dptdr.errors import OutputError
    from dptdr.search.stores.addresses import load_database, open_database

    folder = encode(encoder, [Document(Passage("a", "b"))], tmp_path / "v")
    for name, content in (("data", "{}"), ("notes", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("meta.json" if content else "notes.txt")).write_text(content or "mine")
        with pytest.raises((VectorsError, OutputError), match=f"{name}.*choose a"):
            load_database(folder, address=f"qdrant:{tmp_path / name}", name="n")
    with pytest.raises(VectorsError, match="none: expected a Qdrant folder, got none"):
        open_database(f"qdrant:{tmp_path / 'none'}", "n")
    assert not (tmp_path / "none").exists()
    load_database(folder, address=f"qdrant:{tmp_path / 'new'}", name="n").close()
    found = open_database(f"qdrant:{tmp_path / 'new'}", "n")
    assert found.count == 1
    found.close()


def test_an_open_index_never_mixes_two_prompts(client, make_encoder, tmp_path):
    first, second = make_encoder(), make_encoder(prompt="p2")
    documents = [Document(Passage("a", "red apple")), Document(Passage("b", "blue sea"))]
    index = load_qdrant(encode(first, documents, tmp_path / "1"), client=client, name="n")
    load_qdrant(encode(second, documents, tmp_path / "2"), client=client, name="n")

    for use in (
        lambda: best(index, first, "red apple"),
        lambda: index.delete(["a"]),
        lambda: index.documents(["a"]),
        lambda: index.upsert(
            documents,
            first.encode_passages(["x", "y"]),
            passage_fingerprint=first.passage_fingerprint,
        ),
    ):
        with pytest.raises(WrongPrompt, match="loaded again since it was opened"):
            use()
    assert best(QdrantIndex(client, "n"), second, "red apple")[0] == "a"


DAMAGE = [
    ([1], "expected the origin of the vectors as an object, got a list"),
    ({"dim": "8"}, "field 'dim': expected an integer of at least 1, got the text '8'"),
    ({"dtype": 7}, "field 'dtype': expected float32 or float16, got the number 7"),
    ({"encoder": None}, "field 'encoder': expected a string, got null"),
    ({"probe": ["x"]}, "field 'probe': expected finite numbers"),
    ({"later": 1}, "field 'later': not known to this version of dptdr"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGE)
def test_a_damaged_origin_is_one_error_and_loading_again_repairs_it(
    client, encoder, tmp_path, change, words
):
    folder = encode(encoder, passages(12), tmp_path / "v")
    index = load_qdrant(folder, client=client, name="n")
    origin = change if isinstance(change, list) else index.origin.as_json() | change
    client.update_collection(index._current(), metadata={"origin": origin, "loaded": "many"})

    for use in (lambda: QdrantIndex(client, "n"), lambda: best(index, encoder, "word3 common")):
        with pytest.raises(VectorsError) as caught:
            use()
        assert str(caught.value).startswith("Qdrant, index 'n'")
        assert words in str(caught.value)

    repaired = load_qdrant(folder, client=client, name="n")
    assert best(repaired, encoder, "word3 common")[0] == "d3"
    assert repaired.count == 12


def test_a_damaged_point_is_one_error(client, encoder, tmp_path):
    index = load_qdrant(encode(encoder, passages(3), tmp_path / "v"), client=client, name="n")
    client.delete_payload("n", keys=["id"], points=qdrant_client.models.Filter())
    for use in (lambda: best(index, encoder, "word1 common"), lambda: index.documents(["d1"])):
        with pytest.raises(VectorsError, match="index 'n': the payload of a point is damaged"):
            use()


def test_a_collection_that_is_exchanged_while_it_is_searched_is_searched_again(
    client, encoder, tmp_path, monkeypatch
):
    index = load_qdrant(encode(encoder, passages(5), tmp_path / "1"), client=client, name="n")
    second = encode(encoder, passages(9), tmp_path / "2")
    real, calls = client.query_batch_points, []

    def exchanged(name, **options):
        calls.append(name)
        if len(calls) == 1:
            load_qdrant(second, client=client, name="n")
        return real(name, **options)

    monkeypatch.setattr(client, "query_batch_points", exchanged)
    assert best(index, encoder, "word8 common")[0] == "d8"
    assert len(set(calls)) == 2


@pytest.mark.parametrize(
    ("use", "answer", "count"),
    [
        (lambda index, encoder: index.count, 9, 9),
        (lambda index, encoder: index.documents(["d4"])[0].passage.text, "word4 common", 9),
        (lambda index, encoder: best(index, encoder, "word8 common")[0], "d8", 9),
        (lambda index, encoder: index.delete(["d4", "d8"]), 2, 7),
        (lambda index, encoder: add(index, encoder, "new"), None, 10),
    ],
    ids=["count", "documents", "search", "delete", "upsert"],
)
@pytest.mark.parametrize("after", ["get_aliases", "get_collection"])
def test_what_is_asked_while_the_collection_is_exchanged_is_asked_again(
    client, encoder, tmp_path, monkeypatch, use, answer, count, after
):
    index = load_qdrant(encode(encoder, passages(5), tmp_path / "1"), client=client, name="n")
    second = encode(encoder, passages(9), tmp_path / "2")
    real = getattr(client, after)

    def exchanged(*arguments):
        found = real(*arguments)
        monkeypatch.setattr(client, after, real)
        load_qdrant(second, client=client, name="n")
        return found

    monkeypatch.setattr(client, after, exchanged)
    assert use(index, encoder) == answer
    assert index.count == count


def add(index, encoder, text):
    vectors = encoder.encode_passages([text])
    index.upsert(
        [Document(Passage(text, text))], vectors, passage_fingerprint=encoder.passage_fingerprint
    )


@pytest.mark.parametrize("sizes", [(30, 9), (30, 30)])
def test_of_two_loads_the_one_that_ends_last_serves_and_nothing_is_left(
    client, encoder, tmp_path, sizes
):
    load_qdrant(encode(encoder, passages(5), tmp_path / "0"), client=client, name="n")
    first, second = (
        encode(encoder, passages(size), tmp_path / str(place))
        for place, size in enumerate(sizes, start=1)
    )

    def load_another(done, total):
        if done == total:
            load_qdrant(second, client=client, name="n")

    index = load_qdrant(first, client=client, name="n", on_progress=load_another)
    assert index.count == 30
    assert len(client.get_collections().collections) == 1


def test_a_changed_collection_that_an_interrupted_load_left_is_not_taken_as_loaded(
    client, encoder, tmp_path, monkeypatch
):
    first = encode(encoder, passages(5), tmp_path / "1")
    second = encode(encoder, passages(9), tmp_path / "2")
    load_qdrant(first, client=client, name="n").delete(["d1"])
    with monkeypatch.context() as patch:
        patch.setattr(client, "delete_collection", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_qdrant(second, client=client, name="n")
    assert QdrantIndex(client, "n").count == 9

    again = load_qdrant(first, client=client, name="n")

    assert again.count == 5
    assert best(again, encoder, "word1 common")[0] == "d1"


def interrupted(*_arguments):
    raise KeyboardInterrupt
