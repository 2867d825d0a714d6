"""The ONNX graph against torch, alone and behind a registry; needs the export extra."""

import json

import numpy as np
import pytest
import torch

from helpers.serving import random_rows, write_bundle
from helpers.tiny import save_tiny

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"SKIPPED LOUDLY: ONNX export is not tested without {name}")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone's folder with an export, made by the command, and a data set."""
    from typer.testing import CliRunner

    from dptdr.cli.app import build_app
    from dptdr.model import Backbone

    folder = tmp_path_factory.mktemp("export")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    write_bundle(folder / "task", backbone, seed=1)
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    words = ["red boat", "green house", "old train", "small bird", "dark river"]
    lines = [{"_id": str(n), "title": "", "text": text} for n, text in enumerate(words)]
    (data / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"_id": f"q{n}", "text": f"where is the {text}"} for n, text in enumerate(words)]
    (data / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = "".join(f"q{n}\t{n}\t1\n" for n in range(5))
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    options = ["--task", folder / "task", "--int8", "--data", data, "--out", folder / "graph"]
    ended = CliRunner().invoke(
        build_app(), ["export", *map(str, options), "--json", str(folder / "report.json")]
    )
    assert ended.exit_code == 0, ended.output + repr(ended.exception)
    (folder / "output.txt").write_text(ended.output)
    return folder


def loaded(place):
    from dptdr.model import Backbone
    from dptdr.serving.onnx.int8_forward import OnnxForward

    backbone = Backbone.load(str(place / "tiny"))
    return OnnxForward(backbone, place / "graph", threads=1)


def mixture(backbone):
    from dptdr.serving.forward import BatchRow

    generator = torch.Generator().manual_seed(0)
    prompts = [None, random_rows(backbone, 3, seed=1), random_rows(backbone, 6, seed=2)]
    return [
        BatchRow(torch.randint(5, 90, (length,), generator=generator).tolist(), prompts[n % 3])
        for n, length in enumerate((5, 9, 2, 30, 1, 17))
    ]


def test_vectors_of_mixed_rows_stay_near_torch(place):
    forward = loaded(place)
    rows = mixture(forward.backbone)

    made = forward.vectors(rows)

    alone = torch.stack([forward.single(row) for row in rows])
    cosines = torch.nn.functional.cosine_similarity(made, alone)
    assert 0.98 < float(cosines.min()) < 0.9999999


def test_export_says_what_the_graphs_cost(place):
    report = json.loads((place / "report.json").read_text())

    assert report == json.loads((place / "graph" / "export.json").read_text())
    assert report["largest_difference"]["fp32"] <= 1e-4
    assert set(report["ndcg_at_10"]) == {"torch", "int8"}
    output = (place / "output.txt").read_text()
    assert "int8: differs from torch by at most" in output
    assert "cost" in output


def test_bank_and_engine_work_on_a_graph(place, tmp_path):
    from dptdr.model.bundle import load_task
    from dptdr.serving.engine.engine import Engine
    from dptdr.serving.tasks.registry import TaskRegistry

    registry = TaskRegistry(loaded(place), state=tmp_path)
    registry.add("medical", place / "task")
    texts = ["the red boat", "", "why does the river run"]
    with Engine(registry) as engine:
        made = engine.encode(texts, task="medical", side="query")
        report = engine.check(texts)

    expected = load_task(place / "task").encode_queries(texts)
    cosines = (made * expected).sum(1) / np.linalg.norm(made, axis=1)
    assert (cosines / np.linalg.norm(expected, axis=1)).min() > 0.98
    assert report.passed


def test_feed_forward_rows_are_refused_by_name(place, tmp_path):
    from dptdr.errors import ConfigError
    from dptdr.serving.tasks.registry import TaskRegistry

    forward = loaded(place)
    bundle = write_bundle(tmp_path / "rows", forward.backbone, ffn_length=2)

    with pytest.raises(
        ConfigError, match="do not support feed-forward rows; train the task with --ffn"
    ):
        TaskRegistry(forward, state=tmp_path / "state").add("rows", bundle)


def test_a_graph_of_another_backbone_is_refused(place, tmp_path):
    from dptdr.errors import WrongBackbone
    from dptdr.model import Backbone
    from dptdr.serving.onnx.int8_forward import OnnxForward

    other = Backbone.load(str(save_tiny(tmp_path / "other", seed=3)))
    with pytest.raises(WrongBackbone, match="expected a graph of backbone"):
        OnnxForward(other, place / "graph")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected --task TASK or --backbone"),
        (["--backbone", "minilm", "--int8"], "add --data DATA to measure the cost"),
        (["--backbone", "minilm", "--data", "x"], "add --int8 to create it"),
        (["--backbone", "minilm", "--split", "dev"], "--split has no effect without --data"),
        (["--fold", "--task", "x", "--int8"], "--int8 has no effect with --fold"),
    ],
)
def test_export_bad_input_is_an_error_before_anything_is_loaded(tmp_path, arguments, words):
    from typer.testing import CliRunner

    from dptdr.cli.app import build_app
    from dptdr.errors import ConfigError

    ended = CliRunner().invoke(build_app(), ["export", "--out", str(tmp_path / "x"), *arguments])

    assert isinstance(ended.exception, ConfigError)
    assert words in str(ended.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", ["missing", "format", "graph", "float32 alone"])
def test_a_broken_export_is_refused(place, tmp_path, damage):
    import shutil

    from dptdr.errors import ConfigError
    from dptdr.model import Backbone
    from dptdr.serving.onnx.int8_forward import OnnxForward

    folder = tmp_path / "graph"
    shutil.copytree(place / "graph", folder)
    if damage == "missing":
        (folder / "export.json").unlink()
    elif damage == "format":
        (folder / "export.json").write_text('{"format": "x"}')
    elif damage == "graph":
        (folder / "model.int8.onnx").write_bytes(b"nothing")
    if damage == "float32 alone":
        (folder / "model.int8.onnx").unlink()
    words = {
        "missing": "that `dptdr export` wrote",
        "format": "expected format",
        "graph": "expected the graph that was exported",
        "float32 alone": "needs an 8-bit graph",
    }
    with pytest.raises(ConfigError, match=words[damage]):
        OnnxForward(Backbone.load(str(place / "tiny")), folder)


def export_again(place, *arguments):
    from typer.testing import CliRunner

    from dptdr.cli.app import build_app

    return CliRunner().invoke(build_app(), ["export", *map(str, arguments)]).exception


@pytest.mark.parametrize("fold", [[], ["--fold"]])
def test_an_export_never_replaces_what_is_not_an_export(place, tmp_path, fold):
    from dptdr.errors import OutputError

    (tmp_path / "thesis.txt").write_text("years of work")

    refused = export_again(place, "--task", place / "task", "--out", tmp_path, *fold)

    assert isinstance(refused, OutputError)
    assert "contains unrelated files (no export.json)" in str(refused)
    (tmp_path / "export.json").write_text('{"of": "another program"}')
    refused = export_again(place, "--task", place / "task", "--out", tmp_path, *fold)
    assert "files that would be lost (thesis.txt)" in str(refused)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    refused = export_again(place, "--task", place / "task", "--out", place / "task", *fold)
    assert isinstance(refused, OutputError)
    assert "would replace" in str(refused)


@pytest.mark.parametrize("fault", ["split", "data", "rows", "lora"])
def test_what_cannot_be_measured_leaves_the_old_export(place, tmp_path, fault):
    import shutil

    from dptdr.model import Backbone

    shutil.copytree(place / "graph", tmp_path / "graph")
    before = {file: file.read_bytes() for file in (tmp_path / "graph").iterdir()}
    task, data, split = place / "task", place / "data", "test"
    if fault == "split":
        split = "nosuch"
    elif fault == "data":
        data = tmp_path / "nosuch"
    elif fault == "rows":
        task = write_bundle(tmp_path / "rows", Backbone.load(str(place / "tiny")), ffn_length=2)
    else:
        task = shutil.copytree(task, tmp_path / "lora")
        about = json.loads((task / "task.json").read_text())
        (task / "task.json").write_text(json.dumps(about | {"method": "lora"}))
    options = ["--task", task, "--int8", "--data", data, "--split", split]

    refused = export_again(place, *options, "--out", tmp_path / "graph")

    words = {
        "split": "nosuch",
        "data": "no such",
        "rows": "do not support feed-forward rows",
        "lora": "expected a task trained with 'deep-prompt'",
    }
    assert words[fault] in str(refused)
    assert {file: file.read_bytes() for file in (tmp_path / "graph").iterdir()} == before


def test_a_task_is_not_exported_with_another_backbone(place, tmp_path):
    from dptdr.errors import WrongBackbone

    other = save_tiny(tmp_path / "other", seed=3)

    refused = export_again(
        place, "--task", place / "task", "--backbone", other, "--out", tmp_path / "graph"
    )

    assert isinstance(refused, WrongBackbone)
    assert not (tmp_path / "graph").exists()


def test_a_graph_is_refused_beside_a_backbone_that_encodes_otherwise(place, tmp_path):
    import shutil

    from dptdr.errors import WrongBackbone
    from dptdr.model import Backbone
    from dptdr.serving.onnx.int8_forward import OnnxForward

    changed = shutil.copytree(place / "tiny", tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))

    with pytest.raises(WrongBackbone, match="but encodes differently"):
        OnnxForward(Backbone.load(str(changed)), place / "graph")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("", "another file or a damaged one"),
        ("files", "an object in field 'files'"),
        ("probe", "a list of numbers in field 'probe'"),
    ],
)
def test_a_graph_that_is_not_the_exported_one_is_refused(place, tmp_path, field, words):
    import shutil

    from dptdr.errors import ConfigError
    from dptdr.model import Backbone
    from dptdr.serving.onnx.int8_forward import OnnxForward

    folder = shutil.copytree(place / "graph", tmp_path / "graph")
    about = json.loads((folder / "export.json").read_text())
    about.pop(field, None)
    (folder / "export.json").write_text(json.dumps(about))
    if not field:
        shutil.copy(folder / "model.onnx", folder / "model.int8.onnx")

    with pytest.raises(ConfigError, match=words):
        OnnxForward(Backbone.load(str(place / "tiny")), folder)
