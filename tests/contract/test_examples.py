"""The examples run from official files to the measures, in small, and are not done twice."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dptdr.io.beir import BeirFolder
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL_PRETRAINING = {
    "max_steps": 2,
    "batch_size": 4,
    "span_tokens": 20,
    "min_span_tokens": 2,
    "mini_batch_size": 4,
    "precision": "float32",
    "eval_steps": 0.0,
}
SMALL_TRAINING = {
    "batch_size": 4,
    "max_passage_tokens": 30,
    "precision": "float32",
    "eval_steps": 0.0,
    "dev_passages": 10,
    "dev_queries": 4,
}
OF_THE_PAPER = {"max_steps": 2, "negatives_per_query": 1, "mini_batch_size": 4, "prompt_length": 3}
SMALL_MINING = {"num_negatives": 3, "range_max": 10, "dtype": "float32"}


def script(name, monkeypatch):
    """Load an example with small settings."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, small in (
        ("PRETRAINING", SMALL_PRETRAINING),
        ("TRAINING", SMALL_TRAINING),
        ("MINING", SMALL_MINING),
    ):
        if hasattr(module, constant):
            getattr(module, constant).update(small)
    return module


def run(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["script", "--device", "cpu", *map(str, words)])
    module.main()


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "encoder", "roberta")
    folder = BeirFolder(tiny_data(tmp_path / "tiny"))
    passages = {passage.id.removeprefix("p"): passage.text for passage in folder.passages()}
    return passages, {query.id.removeprefix("q"): query.text for query in folder.queries()}


def times(folder):
    """When each trained task, each mined file and each encoder was written."""
    made = [path for path in folder.rglob("*") if path.name in ("task.json", "config.json")]
    made += folder.rglob("*.jsonl")
    return {path: path.stat().st_mtime_ns for path in made if ".training" not in str(path)}


def test_msmarco_runs_from_official_files_to_official_measures(texts, monkeypatch, capsys):
    passages, queries = texts
    folder = Path("downloads/msmarco")
    folder.mkdir(parents=True)
    lines = [f"{number}\t{text}\n" for number, text in passages.items()]
    (folder / "collection.tsv").write_text("".join(lines), encoding="utf-8")
    for split, part in (("train", range(24)), ("dev.small", range(24, 30))):
        asked = [f"{n}\t{queries[str(n)]}\n" for n in part]
        judged = [f"{n}\t0\t{n}\t1\n" for n in part]
        (folder / f"queries.{split}.tsv").write_text("".join(asked), encoding="utf-8")
        (folder / f"qrels.{split}.tsv").write_text("".join(judged), encoding="utf-8")
    module = script("msmarco", monkeypatch)
    monkeypatch.setattr(module, "STRICT", False)
    module.TRAINING.update(OF_THE_PAPER)
    run(module, monkeypatch, "--backbone", "./encoder")
    measures = json.loads(Path("runs/msmarco/report.json").read_text(encoding="utf-8"))["measures"]
    # 30 passages are fewer than 1,000, so that every query's one is found.
    assert measures["hit_rate@1000"] == measures["R@1000"] == 1.0
    assert 0.0 < measures["MRR@10"] <= 1.0
    before = times(Path("runs"))
    capsys.readouterr()
    run(module, monkeypatch, "--backbone", "./encoder")
    assert capsys.readouterr().out.count("# complete") == 6
    assert times(Path("runs")) == before


def test_nq_runs_from_dprs_files_to_answer_accuracy(texts, monkeypatch):
    passages, queries = texts
    folder = Path("downloads/nq")
    folder.mkdir(parents=True)
    lines = [f"{int(number) + 1}\t{text}\tTitle\n" for number, text in passages.items()]
    (folder / "psgs_w100.tsv").write_text("id\ttext\ttitle\n" + "".join(lines), encoding="utf-8")
    for split, part in (("train", range(20)), ("dev", range(20, 24))):
        records = [
            {
                "question": queries[str(n)],
                "answers": ["x"],
                "positive_ctxs": [{"passage_id": str(n + 1), "title": "", "text": "t"}],
                "negative_ctxs": [],
                "hard_negative_ctxs": [],
            }
            for n in part
        ]
        (folder / f"biencoder-nq-{split}.json").write_text(json.dumps(records), encoding="utf-8")
    asked = [f"{queries[str(n)]}\t{[passages[str(n)]]!r}\n" for n in range(24, 30)]
    (folder / "nq-test.qa.csv").write_text("".join(asked), encoding="utf-8")
    module = script("nq", monkeypatch)
    monkeypatch.setattr(module, "STRICT", False)
    module.TRAINING.update(OF_THE_PAPER)
    run(module, monkeypatch, "--backbone", "./encoder")
    report = json.loads(Path("runs/nq/report.json").read_text(encoding="utf-8"))
    assert report["queries"] == 6
    # Each answer is a whole passage, and 100 ranks hold all 30 passages.
    assert report["measures"]["top-100"] == 1.0
    assert report["measures"]["top-5"] <= report["measures"]["top-20"]


def test_ablation_makes_every_row(texts, monkeypatch, tmp_path):
    module = script("ablation", monkeypatch)
    monkeypatch.setattr(module, "LENGTHS", (2,))
    words = ("--data", tmp_path, "--sets", "tiny", "--backbone", "./encoder", "--steps", "2")
    run(module, monkeypatch, *words, "--queries", "6", "--passages", "30")
    page = Path("runs/ablation/table.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        *("BM25", "encoder, untuned", "FT", "DPT"),
        *("DPT + RIP", "DPT + UNM", "DPTDR (all)", "DPT, 2 rows"),
    ]


def test_own_data_goes_from_pairs_to_an_answer(texts, monkeypatch, capsys):
    passages, queries = texts
    lines = [f"{queries[n]},{passages[n]}\n" for n in queries]
    Path("pairs.csv").write_text("question,answer\n" + "".join(lines), encoding="utf-8")
    module = script("own_data", monkeypatch)
    module.TRAINING.update(max_steps=2)
    words = ("pairs.csv", "--backbone", "./encoder", "--query", queries["3"])
    run(module, monkeypatch, *words)
    out = capsys.readouterr().out
    answers = out[out.index(f"\n{queries['3']}\n") :].splitlines()[2:]
    scores = [float(line.split()[0]) for line in answers]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    found = {" ".join(line.split()[2:]) for line in answers}
    assert found <= {text[:80] for text in passages.values()}


@pytest.mark.parametrize("name", ["msmarco", "nq", "ablation", "own_data"])
def test_dry_run_shows_the_calls_and_makes_none(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    run(script(name, monkeypatch), monkeypatch, "--dry-run", *["pairs.csv"][: name == "own_data"])
    out = capsys.readouterr().out
    assert "train(" in out
    assert "prompt_length" in out or name == "own_data"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["own_data.py", "none.csv"], "error: none.csv: no such file or folder"),
        (["msmarco.py", "--downloads", "none"], "error: none: expected a folder with collection"),
        (["nq.py", "--downloads", "none"], "error: none: expected a folder with psgs_w100.tsv"),
        (["ablation.py", "--data", "none"], "error: none/python-code: no such folder"),
        (["own_data.py"], "error: the following arguments are required: pairs; see --help"),
        (["ablation.py", "--steps", "x"], "error: argument --steps: invalid int value: 'x'"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(tmp_path, words, line):
    command = [sys.executable, EXAMPLES / words[0], *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
