"""The recipes of MS MARCO and Natural Questions run to the table, on miniature official files."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.io.beir import BeirFolder
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

SMALL = {
    "vars.encoder": "./encoder",
    "machine.device": "cpu",
    "machine.processes": 1,
    "machine.threads": 1,
    "stages.data.strict": "false",
    "stages.rip.steps": 2,
    "stages.rip.batch_size": 4,
    "stages.rip.span_tokens": 20,
    "stages.rip.least_span_tokens": 2,
    "stages.rip.chunk_texts": 4,
    "stages.unm.mine.depth": 10,
    "stages.unm.mine.source": '["bm25,ranks=1-10,quota=3", "@current,ranks=1-10,quota=3"]',
    "stages.unm.train.steps": 2,
    "stages.unm.train.batch_size": 4,
    "stages.unm.train.negatives_per_query": 1,
    "stages.unm.train.chunk_texts": 4,
    "stages.unm.train.prompt_length": 3,
    "stages.unm.train.max_passage_tokens": 30,
    "stages.unm.train.evaluations": 1,
    "stages.unm.train.dev_passages": 10,
}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "encoder", "roberta")
    folder = BeirFolder(tiny_data(tmp_path / "tiny"))
    passages = {passage.id.removeprefix("p"): passage.text for passage in folder.passages()}
    return passages, {query.id.removeprefix("q"): query.text for query in folder.queries()}


def run(name):
    changes = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(build_app(), ["run", str(RECIPES / f"{name}.toml"), *changes])
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{name}: 11 stages done now, 0 done before" in done.output
    return json.loads(Path(f"runs/{name}/tables/paper.json").read_text(encoding="utf-8"))["cells"]


def test_msmarco_recipe_runs_from_official_files_to_official_measures(texts):
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
    (cell,) = run("msmarco")
    assert cell["queries"] == 6
    # 30 passages are fewer than 1,000, so that every query's one is found.
    assert cell["measures"]["hit_rate@1000"] == cell["measures"]["R@1000"] == 1.0
    assert 0.0 < cell["measures"]["MRR@10"] <= 1.0


def test_nq_recipe_runs_from_dprs_files_to_answer_accuracy(texts):
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
    (cell,) = run("nq")
    assert cell["queries"] == 6
    # Each answer is a whole passage, and 100 ranks hold all 30 passages.
    assert cell["measures"]["top-100"] == 1.0
    assert cell["measures"]["top-5"] <= cell["measures"]["top-20"]
