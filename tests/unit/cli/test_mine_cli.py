"""``dptdr mine`` from the command line."""

import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.data.training_files import GroupFile
from dptdr.errors import ConfigError, DataError, DptdrError, NegativesError, OutputError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query

WORDS = ["fox", "dog", "cat", "sea"]


class _WordEncoder:
    dim = 4
    name = "words"
    backbone_fingerprint = "b" * 64
    query_fingerprint = "q" * 64
    passage_fingerprint = "p" * 64

    def eval(self):
        return ""

    def __init__(self):
        self.passages = 0

    def _encode(self, texts):
        return np.array(
            [[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32
        ).reshape(len(texts), 4)

    def encode_queries(self, texts, *, on_progress=None):
        return self._encode(texts)

    def encode_passages(self, texts, *, on_progress=None):
        self.passages += len(texts)
        return self._encode(texts)


@pytest.fixture
def encoder(monkeypatch):
    double = _WordEncoder()
    monkeypatch.setattr("dptdr.model.load_encoder", lambda **_: double)
    return double


@pytest.fixture
def data(tmp_path):
    write_beir(
        tmp_path / "animals",
        passages=[
            Passage("p0", "fox fox"),
            Passage("p1", "fox dog"),
            Passage("p2", "Fox  fox", title="copy"),
            Passage("p3", "fox sea"),
            Passage("p4", "dog dog cat"),
        ],
        queries=[Query("q0", "fox"), Query("q1", "dog"), Query("q2", "cat")],
        qrels={
            "train": {"q0": {"p0": 1}, "q1": {"p1": 1}},
            "test": {"q2": {"p4": 2, "p3": 2, "p1": 0}},
        },
        meta={},
    )
    return tmp_path / "animals"


def _invoke(*arguments):
    return CliRunner().invoke(build_app(), ["mine", *map(str, arguments)])


def _records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mine_writes_negatives_that_training_reads(data, tmp_path, encoder):
    out = tmp_path / "negatives.jsonl"
    result = _invoke(
        data, "--source", "bm25", "--source", "backbone:minilm", "--out", out, "--quota", "2",
        "--report", tmp_path / "report", "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    records = {record["query_id"]: record for record in _records(out)}
    first = {item["id"]: item["sources"] for item in records["q0"]["negatives"]}
    # p2 is a copy of the positive p0; p1 and p3 share the word.
    assert set(first) == {"p1", "p3"}
    # By dot product: p0 and p2 have 2, p1 and p3 have 1.
    assert first["p3"]["backbone:minilm"] == {"rank": 4, "score": 1.0}
    assert first["p3"]["bm25"]["rank"] in (3, 4)
    (group, _) = GroupFile(out, folder=BeirFolder(data))
    assert (group.query, group.positives) == ("fox", ("fox fox",))
    assert set(group.negatives) == {"fox dog", "fox sea"}
    assert not out.with_name("negatives.jsonl.partial").exists()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["sources"]["bm25"]["queries"] == 2
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "negatives for 2 queries" in result.output


def test_the_same_mining_again_is_complete_and_another_one_is_refused(data, tmp_path, encoder):
    out = tmp_path / "negatives.jsonl"
    arguments = [data, "--source", "backbone:minilm,quota=1", "--out", out]
    first = _invoke(*arguments)
    assert first.exit_code == 0, first.output
    before, encoded = out.read_bytes(), encoder.passages
    again = _invoke(*arguments)
    assert f"{out}: complete, nothing to do" in again.output
    assert again.stdout.splitlines() == first.stdout.splitlines()
    assert encoder.passages == encoded
    words = r"settings differ .*seed: was 0, is 3; sources.*num_negatives: was 1, is 2"
    other = _invoke(data, "--source", "backbone:minilm,quota=2", "--seed", "3", "--out", out)
    assert isinstance(other.exception, OutputError)
    assert re.search(words, str(other.exception))
    assert out.read_bytes() == before
    result = _invoke(data, "--source", "bm25", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    assert out.read_bytes() != before


def test_mine_gives_the_same_bytes_with_any_threads_and_a_cache(data, tmp_path, encoder):
    options = ["--source", "bm25,sampling=uniform,quota=1", "--source", "backbone:minilm"]
    contents = []
    for number in ("1", "3"):
        out = tmp_path / f"{number}.jsonl"
        result = _invoke(
            data, *options, "--out", out, "--threads", number, "--cache", tmp_path / "cache"
        )
        assert result.exit_code == 0, result.output
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    # The second run found the corpus vectors of the first.
    assert encoder.passages == 5


def test_mine_drops_by_a_teacher_and_measures_it_on_judged_data(data, tmp_path, encoder):
    out = tmp_path / "n.jsonl"
    result = _invoke(
        data, "--source", "backbone:minilm", "--out", out, "--teacher", "backbone:minilm",
        "--drop-above", "0.5", "--judged-split", "test", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    records = {record["query_id"]: record for record in _records(out)}
    # All that hold the word are dropped; p4 alone is left for the fox.
    assert [item["id"] for item in records["q0"]["negatives"]] == ["p4"]
    assert records["q0"]["positive_teacher"] == [2.0]
    report = json.loads((tmp_path / "r.json").read_text())
    # Known: p4. Hidden: p3, without the word, so kept. Other: p1, kept.
    assert report["removal"]["recall"] == 0.0
    assert report["removal"]["judged_candidates"] == 2
    assert report["dropped"]["backbone:minilm"]["max_score"] > 0
    assert {example["reason"] for example in report["dropped_examples"]} == {"max_score"}


def test_mine_takes_scores_from_a_file_and_keeps_all_to_distil(data, tmp_path):
    scores = tmp_path / "scores.trec"
    lines = [f"{q} Q0 p{n} 1 {n / 10} t" for q in ("q0", "q1") for n in range(5)]
    scores.write_text("\n".join(lines))
    out = tmp_path / "n.jsonl"
    result = _invoke(
        data, "--source", "bm25", "--out", out, "--teacher", f"file:{scores}", "--keep-scores"
    )
    assert result.exit_code == 0, result.output
    found = {item["id"]: item["teacher"] for item in _records(out)[0]["negatives"]}
    assert found == {"p1": 0.1, "p3": 0.3}


def test_mine_writes_for_tevatron(data, tmp_path):
    out = tmp_path / "n.jsonl"
    result = _invoke(data, "--source", "bm25", "--out", out, "--format", "tevatron")
    assert result.exit_code == 0, result.output
    groups = list(GroupFile(out))
    assert groups[0].query == "fox"
    assert groups[0].positives == ("fox fox",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "bm52"], "source 'bm52': expected bm25"),
        (["--source", "bm25", "--margin", "0.1"], "--keep-scores need a --teacher"),
        (["--source", "bm25", "--teacher", "task:t"], "--teacher needs a bound"),
        (
            ["--source", "bm25", "--teacher", "task:t", "--margin", "1", "--keep-scores"],
            "--keep-scores disables dropping",
        ),
        (
            ["--source", "bm25", "--judged-split", "test"],
            "--judged-split has no effect without --teacher",
        ),
        (
            ["--source", "bm25", "--source", "bm25"],
            "expected unique source names, got 'bm25' twice",
        ),
        (["--source", "bm25", "--teacher", "judge", "--margin", "1"], "teacher 'judge': expected"),
    ],
)
def test_mine_refuses_options_that_contradict(data, tmp_path, options, message):
    result = _invoke(data, *options, "--out", tmp_path / "n.jsonl")
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "n.jsonl").exists()


def test_mine_names_unknown_ids_of_a_run_and_missing_files(data, tmp_path):
    run = tmp_path / "other.trec"
    run.write_text("q0 Q0 p1 1 2 t\nq0 Q0 zz 2 1 t\n")
    out = tmp_path / "n.jsonl"
    error = _invoke(data, "--source", f"run:{run}", "--out", out).exception
    assert isinstance(error, DataError)
    assert f"{run}, line 2: passage 'zz' is not in the corpus" in str(error)
    error = _invoke(data, "--source", "run:absent.trec", "--out", out).exception
    assert "absent.trec: no such file" in str(error)
    error = _invoke(data, "--source", "bm25", "--split", "dev", "--out", out).exception
    assert "no split 'dev'; this folder has train, test" in str(error)
    run.write_text("q9 Q0 p1 1 2 t\n")
    error = _invoke(data, "--source", f"run:{run}", "--out", out).exception
    assert isinstance(error, NegativesError)
    assert "ranks none of the 2 judged queries" in str(error)


def test_mine_tells_of_sources_and_queries_without_candidates(data, tmp_path):
    run = tmp_path / "own.trec"
    run.write_text("q0 Q0 p0 1 2 t\nq0 Q0 p2 2 1 t\n")
    result = _invoke(data, "--source", f"run:{run}", "--source", "bm25", "--out", tmp_path / "n")
    assert result.exit_code == 0, result.output
    assert "warning: source 'run:own' finds only positives at ranks 1 to 200" in result.output


def test_sources_that_differ_in_ranks_alone_are_searched_once(data, encoder, tmp_path, monkeypatch):
    from dptdr.search.bm25 import Bm25Index

    searched = []
    search = Bm25Index.search_rows
    monkeypatch.setattr(
        Bm25Index,
        "search_rows",
        lambda self, queries, *, depth, threads=1: (
            searched.append(depth) or search(self, queries, depth=depth, threads=threads)
        ),
    )
    one, two = "bm25,ranks=1-2,name=one", "bm25,ranks=2-3,name=two"
    for name, sources in (("both", [one, two]), ("first", [one]), ("second", [two])):
        arguments = [str(data), "--out", str(tmp_path / f"{name}.jsonl")]
        for source in sources:
            arguments += ["--source", source]
        assert _invoke(*arguments).exit_code == 0
    assert searched == [3, 2, 3]
    ids = {
        name: [
            {negative["id"] for negative in json.loads(line)["negatives"]}
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("both", "first", "second")
    }
    together = [a | b for a, b in zip(ids["first"], ids["second"], strict=True)]
    assert ids["both"] == together


def test_an_encoder_that_is_teacher_and_source_is_loaded_once(data, monkeypatch, tmp_path):
    loaded = []

    def load_encoder(**_):
        loaded.append(_WordEncoder())
        return loaded[-1]

    monkeypatch.setattr("dptdr.model.load_encoder", load_encoder)
    arguments = [str(data), "--out", str(tmp_path / "n.jsonl"), "--source", "backbone:words"]
    arguments += ["--teacher", "backbone:words", "--margin", "0"]
    assert _invoke(*arguments).exit_code == 0
    assert len(loaded) == 1


@pytest.mark.parametrize("role", ["source", "teacher"])
def test_an_encoder_that_encodes_differently_now_is_another_one(data, tmp_path, encoder, role):
    other = "backbone:minilm" if role == "source" else "bm25"
    options = [data, "--source", other, "--out", tmp_path / "out.jsonl"]
    if role == "teacher":
        options += ["--teacher", "backbone:minilm", "--margin", "0"]
    encoder.backbone_probe = (1.0, 2.0)
    assert _invoke(*options).exit_code == 0
    encoder.backbone_probe = (1.0, -2.0)

    refused = _invoke(*options).exception

    assert isinstance(refused, DptdrError), refused
    assert "cannot resume: these settings differ" in str(refused)
    assert "probe: was [1.0, 2.0], is [1.0, -2.0]" in str(refused)


def test_runs_left_by_another_dtype_are_not_used(data, tmp_path, encoder):
    out, options = tmp_path / "out.jsonl", [data, "--source", "backbone:minilm"]
    run = tmp_path / "short.trec"
    run.write_text("q0 Q0 p1 1 1.0 x\n")
    broken = ["--dtype", "bfloat16", "--teacher", f"file:{run}", "--max-score", "0.1"]
    assert _invoke(*options, *broken, "--out", out).exception is not None
    assert list((tmp_path / "out.jsonl.partial" / "runs").glob("train-*/00000.hits"))

    result = _invoke(*options, "--out", out, "--overwrite")

    assert result.exit_code == 0, result.output
    # Encoded again, as the vectors of the other dtype are not those asked for.
    assert encoder.passages == 10


@pytest.mark.parametrize(
    "part", ["vectors-*/shards/00000.npy", "bm25-*/data.csc.index.npy", "hits"]
)
def test_a_damaged_cache_never_becomes_negatives(data, tmp_path, encoder, part):
    source = "bm25" if part.startswith("bm25") else "backbone:minilm"
    options = [data, "--source", source, "--cache", tmp_path / "cache"]
    out, hits = tmp_path / "1.jsonl", part == "hits"
    if hits:
        run = tmp_path / "short.trec"
        run.write_text("q0 Q0 p1 1 1.0 x\n")
        stopped = ["--teacher", f"file:{run}", "--max-score", "0.1", "--out", out]
        assert _invoke(*options, *stopped).exception is not None
        part, folder = "runs/train-*/00000.hits", tmp_path / "1.jsonl.partial"
        assert len(list(folder.glob(part))) == 1
    else:
        assert _invoke(*options, "--out", out).exit_code == 0
        folder, out = tmp_path / "cache", tmp_path / "2.jsonl"
    (file,) = folder.glob(part)
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    file.write_bytes(content)

    again = [*options, *stopped] if hits else [*options, "--out", out, "--overwrite"]
    refused = _invoke(*again).exception

    assert isinstance(refused, DptdrError), refused
    assert re.search("SHA-256|checksum|damaged", str(refused))
    assert not out.exists()
    if hits:
        # The unfinished work is discarded, too.
        assert _invoke(*options, "--out", out, "--overwrite").exit_code == 0
        assert not folder.exists()


def test_mine_names_judgements_with_conflicting_grades(data, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    qrels = folder / "qrels" / "train.tsv"
    query, passage, grade = qrels.read_text().splitlines()[1].split("\t")
    with qrels.open("a") as handle:
        handle.write(f"{query}\t{passage}\t{int(grade) + 1}\n")

    error = _invoke(folder, "--source", "bm25", "--out", tmp_path / "n").exception

    assert "conflicting grades" in str(error)
    assert f"line {len(qrels.read_text().splitlines())}" in str(error)
