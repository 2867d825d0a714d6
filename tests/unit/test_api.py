import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dptdr
from dptdr.errors import (
    BundleError,
    ConfigError,
    DataError,
    DptdrError,
    EvaluationError,
    OutputError,
    VectorsError,
    WrongBackbone,
    WrongPrompt,
)
from dptdr.evaluation import measures
from dptdr.io.beir import BeirFolder
from dptdr.records import Hit, Query
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

QUICK = {
    "max_steps": 3,
    "batch_size": 4,
    "dev_passages": 20,
    "prompt_length": 3,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    return tiny_data(root / "data"), save_tiny(root / "bert"), root


@pytest.fixture(scope="module")
def task(places):
    data, backbone, root = places
    return dptdr.train(data, out=root / "task", backbone=backbone, **QUICK)


def test_the_door_opens_without_torch_and_names_what_is_behind_it():
    code = (
        "import sys, dptdr; assert 'train' in dir(dptdr); "
        "print('torch' in sys.modules, hasattr(dptdr, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert all(callable(getattr(dptdr, name)) for name in dptdr.__all__)


def test_a_trained_task_encodes_as_the_loaded_one(places, task):
    loaded = dptdr.load(places[2] / "task", device="cpu")
    texts = ["one text", "another"]
    assert np.array_equal(task.encode_queries(texts), loaded.encode_queries(texts))
    assert task.result.best_step == loaded.manifest.training["best_step"]
    bare = dptdr.load(places[1], device="cpu")
    assert not isinstance(bare, dptdr.Task)
    assert not np.array_equal(task.encode_queries(texts), bare.encode_queries(texts))


def test_an_index_finds_a_passage_by_its_own_text_and_evaluation_agrees_with_it(places, task):
    data, _, root = places
    index = dptdr.build_index(data, task, out=root / "index", progress=False)
    hits = index.search("anything", k=3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.text for hit in hits)
    again = dptdr.open_index(root / "index", root / "task", device="cpu")
    assert again.search("anything", k=3) == hits
    run = dptdr.retrieve(data, index, depth=100)
    whole = dptdr.evaluate(data, task, progress=False)
    assert dptdr.evaluate(data, run).measures == whole.measures
    path = root / "run.trec"
    dptdr.retrieve(data, task, out=path, progress=False)
    assert dptdr.evaluate(data, path).measures == whole.measures
    assert dptdr.evaluate(data, task, limit=2, progress=False).queries == 2
    lexical = dptdr.evaluate(data, "bm25", progress=False)
    assert dptdr.compare([lexical, whole]).systems == ("bm25", whole.system)


def test_an_index_without_an_encoder_says_what_it_needs(places, task):
    data, _, root = places
    dptdr.build_index(data, task, out=root / "mute", progress=False)
    with pytest.raises(ConfigError, match="expected an encoder for the query texts"):
        dptdr.open_index(root / "mute").search("anything")
    with pytest.raises(ConfigError, match="expected an encoder for the data folder"):
        dptdr.build_index(data, out=root / "other", progress=False)


def test_mined_negatives_train_another_task(places):
    data, backbone, root = places
    report = dptdr.mine(data, out=root / "mined.jsonl", num_negatives=3, progress=False)
    assert report["queries"] > 0
    better = dptdr.train(
        data, out=root / "better", backbone=backbone, negatives=root / "mined.jsonl", **QUICK
    )
    assert better.manifest.training["training_file"] == "mined.jsonl"


def rows(number=24):
    return [
        {
            "anchor": f"query {i}",
            "positive": f"answer {i}",
            "negative": f"wrong {i}" if i % 2 else "",
        }
        for i in range(number)
    ]


def test_rows_train_with_their_negatives_and_are_recognised(places, capsys):
    """The same rows again are complete; other rows are refused for what they are: other data."""
    _, backbone, root = places
    out = root / "of-rows"
    task = dptdr.train(rows(), out=out, backbone=backbone, **QUICK)
    facts = task.manifest.training
    assert facts["training_file"] == "negatives-train.jsonl"
    # Those without a negative too.
    assert facts["train_queries"] + facts["train_queries_left_out_as_dev"] == 24
    capsys.readouterr()
    frame = pd.DataFrame(rows())
    again = dptdr.train(frame, out=out, backbone=backbone, **QUICK)
    assert "complete, nothing to do" in capsys.readouterr().err
    assert np.array_equal(again.encode_queries(["a"]), task.encode_queries(["a"]))
    with pytest.raises(OutputError, match=r"data\.data_fingerprint: was"):
        dptdr.train(rows(20), out=out, backbone=backbone, **QUICK)
    pairs = [(row["anchor"], row["positive"]) for row in rows()]
    assert dptdr.evaluate(pairs, task, progress=False).queries == 24
    index = dptdr.build_index(iter(pairs), task, out=root / "rows-index", progress=False)
    assert {hit.text for hit in index.search("q", k=24)} == {positive for _, positive in pairs}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"text": "a"}], "row 1: expected a column anchor or query"),
        ([("a",)], "row 1: expected a query and a positive"),
    ],
)
def test_what_are_no_rows_is_refused_in_one_line(places, tmp_path, data, message):
    with pytest.raises(DptdrError, match=message):
        dptdr.train(data, out=tmp_path / "task", backbone=places[1], **QUICK)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(places, tmp_path):
    data, _, _ = places
    (tmp_path / "file").write_text("x")
    for stage in (
        lambda: dptdr.train(data, out=tmp_path / "file", backbone="no-such", **QUICK),
        lambda: dptdr.pretrain(data, out=tmp_path / "file", backbone="no-such"),
        lambda: dptdr.encode(data, "no-such", out=tmp_path / "file"),
        lambda: dptdr.build_index(data, "no-such", out=tmp_path / "file"),
        lambda: dptdr.mine(data, out=tmp_path, sources=["backbone:no-such"]),
        lambda: dptdr.retrieve(data, "no-such", out=tmp_path),
        lambda: dptdr.evaluate(data, "no-such", run_out=tmp_path),
    ):
        with pytest.raises(OutputError, match=r"expected a (file|folder), got"):
            stage()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lora", "prompt_length": 9}, "prompt_length: expected method deep-prompt"),
        ({"method": "loar"}, "method: expected one of deep-prompt, .*got 'loar'"),
        ({"nothing": 1}, "nothing: unknown setting"),
        ({"batch_size": "x"}, "batch_size: expected int, got 'x'"),
        ({"schedule": "steep"}, "schedule: expected one of linear, cosine, constant"),
        ({"from_task": "t", "initialisation": "random"}, "initialisation: expected none with"),
        ({"device": "cuda:77"}, "device: expected an available device, got 'cuda:77'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(places, tmp_path, settings, message):
    data, backbone, _ = places
    with pytest.raises(ConfigError, match=message):
        dptdr.train(data, out=tmp_path / "task", backbone=backbone, progress=False, **settings)


def test_a_prompts_settings_need_a_prompt_in_pretraining(places, tmp_path):
    data, backbone, _ = places
    with pytest.raises(ConfigError, match="prompt_length: only applies with prompt_only"):
        dptdr.pretrain(data, out=tmp_path / "out", backbone=backbone, prompt_length=4)


def test_a_folder_that_is_no_task_is_refused_where_a_task_is_meant(tmp_path):
    with pytest.raises(BundleError):
        dptdr.load(tmp_path, backbone="minilm")


def test_an_index_is_never_inside_its_vectors_nor_they_in_it(places, tmp_path):
    data, backbone, _ = places
    out = tmp_path / "index"
    for vectors in (out / "vectors", tmp_path, out):
        with pytest.raises(OutputError, match="expected an output separate from"):
            dptdr.build_index(data, backbone, out=out, vectors=vectors, progress=False)
    # Before anything is encoded.
    assert list(tmp_path.iterdir()) == []
    dptdr.encode(data, backbone, out=tmp_path / "made", progress=False)
    with pytest.raises(OutputError, match="expected an output separate from"):
        dptdr.build_index(tmp_path / "made", out=tmp_path / "made" / "in", progress=False)
    assert not (tmp_path / "made" / "in").exists()


def test_numbers_of_numpy_are_numbers(places, tmp_path):
    data, backbone, _ = places
    settings = QUICK | {"max_steps": np.int64(2), "batch_size": np.int32(4)}
    settings["learning_rate"] = np.float32(0.125)
    task = dptdr.train(data, out=tmp_path / "task", backbone=backbone, **settings)
    used = task.manifest.training
    assert (used["max_steps"], used["batch_size"], used["learning_rate"]) == (2, 4, 0.125)
    with pytest.raises(ConfigError, match="max_steps: expected int, got"):
        dptdr.train(data, out=tmp_path / "b", backbone=backbone, max_steps=np.float64(2.0))
    query = next(iter(BeirFolder(data).qrels("test")))
    run = {query: [Hit("p1", np.float32(2.5)), Hit("p2", np.float32(1.5))]}
    dptdr.evaluate(data, run, progress=False)


def test_an_output_never_replaces_its_input(places, tmp_path):
    data, backbone, _ = places
    vectors = tmp_path / "deep" / "vectors"
    dptdr.encode(data, backbone, out=vectors, progress=False)
    before = sorted(path.name for path in vectors.rglob("*"))
    for out in (vectors, vectors.parent, vectors / ".." / "vectors"):
        with pytest.raises(OutputError, match="separate from the input"):
            dptdr.build_index(vectors, out=out, overwrite=True, progress=False)
    with pytest.raises(OutputError, match="separate from the input"):
        dptdr.train(data, out=data, backbone=backbone, overwrite=True, **QUICK)
    assert sorted(path.name for path in vectors.rglob("*")) == before
    run = tmp_path / "r.trec"
    dptdr.retrieve(data, "bm25", out=run, progress=False)
    with pytest.raises(OutputError, match="separate from the input"):
        dptdr.evaluate(data, run, run_out=run, progress=False)
    with pytest.raises(OutputError, match="separate from the input"):
        dptdr.mine(data, sources=[f"run:{run}"], out=run, overwrite=True, progress=False)
    with pytest.raises(ConfigError, match="num_epochs: expected a finite number"):
        dptdr.train(data, out=tmp_path / "t", backbone=backbone, num_epochs=float("inf"))


def test_a_folder_of_another_kind_is_never_replaced(places, tmp_path):
    data, backbone, _ = places
    vectors, index = tmp_path / "vectors", tmp_path / "index"
    dptdr.encode(data, backbone, out=vectors, progress=False)
    dptdr.build_index(vectors, out=index, progress=False)
    with pytest.raises(OutputError, match=r"contains unrelated files .*says 'dptdr-index'"):
        dptdr.encode(data, backbone, out=index, overwrite=True, progress=False)
    other = tmp_path / "other"
    dptdr.encode(data, backbone, out=other, progress=False)
    with pytest.raises(OutputError, match=r"contains unrelated files .*says 'dptdr-vectors'"):
        dptdr.build_index(vectors, out=other, overwrite=True, progress=False)


def test_vectors_of_other_weights_are_other_vectors(places, tmp_path):
    data, backbone, _ = places
    out = tmp_path / "vectors"
    half = dptdr.encode(data, backbone, out=out, weights="bfloat16", progress=False)
    assert half.manifest.origin.weights == "bfloat16"
    with pytest.raises(OutputError, match="weights: was 'bfloat16', is 'float32'"):
        dptdr.encode(data, backbone, out=out, progress=False)
    whole = dptdr.encode(data, backbone, out=out, overwrite=True, progress=False)
    assert "weights" not in json.loads((out / "manifest.json").read_text())
    assert np.abs(half.gather(np.arange(3)) - whole.gather(np.arange(3))).max() < 0.1


def test_patience_without_measures_is_refused(places, tmp_path):
    data, backbone, _ = places
    with pytest.raises(ConfigError, match="patience: has no effect"):
        dptdr.train(data, out=tmp_path / "t", backbone=backbone, eval_steps=0, patience=2)


def test_a_backbone_of_the_same_weights_that_encodes_otherwise_is_refused(places, task, tmp_path):
    data, backbone, root = places
    other = shutil.copytree(backbone, tmp_path / "bert")
    out = dptdr.encode(data, other, out=tmp_path / "vectors", progress=False).path
    dptdr.build_index(out, other, out=tmp_path / "index", progress=False)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    changed = dptdr.load(other)
    assert changed.backbone.fingerprint == dptdr.load(backbone).backbone.fingerprint
    with pytest.raises(WrongPrompt, match=r"encodes differently; check whether config\.json"):
        dptdr.open_index(tmp_path / "index", changed).search("red car")
    with pytest.raises(OutputError, match="encodes differently"):
        dptdr.encode(data, other, out=out, progress=False)
    with pytest.raises(WrongBackbone, match="encodes differently"):
        dptdr.load(root / "task", backbone=other)


@pytest.mark.parametrize("part", ["vectors", "bm25"])
@pytest.mark.parametrize("index_type", ["exact", "hnsw"])
def test_parts_of_two_indexes_are_refused(places, tmp_path, index_type, part):
    data, backbone, _ = places
    rows = [(f"query {n}", f"another passage, number {n}") for n in range(30)]
    for name, source in (("one", data), ("other", rows)):
        index = tmp_path / name
        dptdr.build_index(
            source, backbone, out=index, index_type=index_type, bm25=True, progress=False
        ).close()
    shutil.rmtree(tmp_path / "one" / part)
    shutil.copytree(tmp_path / "other" / part, tmp_path / "one" / part)
    with pytest.raises(VectorsError, match=r"built over|a different index|to match the vectors"):
        dptdr.open_index(tmp_path / "one", backbone, hybrid="rrf").search("red car")


@pytest.mark.parametrize("through", ["name", "link", "hard link", "member"])
def test_no_output_takes_the_place_of_an_input(places, tmp_path, through):
    data = shutil.copytree(places[0], tmp_path / "data")
    run = tmp_path / "run.trec"
    dptdr.retrieve(data, "bm25", out=run, progress=False)
    out = tmp_path / "out"
    match through:
        case "name":
            out = run
        case "link":
            out.symlink_to(run)
        case "hard link":
            out.hardlink_to(run)
        case "member":
            out = data / "qrels" / "test.tsv"
    before = out.read_bytes()
    with pytest.raises(OutputError, match="would replace"):
        dptdr.evaluate(data, run, run_out=out)
    with pytest.raises(OutputError, match="would replace"):
        dptdr.mine(data, out=out, sources=["bm25", f"run:{run}"], overwrite=True, progress=False)
    assert out.read_bytes() == before
    # Files that are not the data's may lie beside them.
    for _ in range(2):
        dptdr.retrieve(data, "bm25", out=data / "run.trec", progress=False)


def test_no_output_takes_the_place_of_what_a_link_in_the_data_leads_to(places, tmp_path):
    data = shutil.copytree(places[0], tmp_path / "data")
    stored = (data / "corpus.jsonl").rename(tmp_path / "corpus.jsonl")
    (data / "corpus.jsonl").symlink_to(stored)
    before = stored.read_bytes()
    with pytest.raises(OutputError, match="would replace"):
        dptdr.retrieve(data, "bm25", out=stored, progress=False)
    assert stored.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_unfinished_work_takes_no_folder_of_the_user(places, tmp_path, overwrite):
    _, backbone, _ = places
    quiet = {"overwrite": overwrite, "progress": False}
    stages = {
        "training": lambda data, out: dptdr.train(
            data, out=out, backbone=backbone, overwrite=overwrite, **QUICK
        ),
        "pretraining": lambda data, out: dptdr.pretrain(
            data,
            out=out,
            backbone=backbone,
            batch_size=4,
            span_tokens=40,
            objectives=("mlm",),
            max_steps=2,
            **quiet,
        ),
        "partial": lambda data, out: dptdr.encode(data, backbone, out=out, **quiet),
    }
    for suffix, stage in stages.items():
        work = shutil.copytree(places[0], tmp_path / f"out.{suffix}")
        before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
        # As the input, and as a folder of someone else.
        with pytest.raises(OutputError, match="would replace"):
            stage(work, tmp_path / "out")
        with pytest.raises(OutputError, match="contains unrelated files"):
            stage(places[0], tmp_path / "out")
        assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
        assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="contains unrelated files"):
        dptdr.mine(places[0], out=tmp_path / "out", sources=["bm25"], **quiet)
    assert (tmp_path / "out.partial" / "corpus.jsonl").is_file()


def test_an_id_with_a_nul_is_refused(places, tmp_path):
    data = shutil.copytree(places[0], tmp_path / "data")
    with (data / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "p1\\u0000", "text": "a"}\n')
    with pytest.raises(DptdrError, match=r"line 31, field '_id': expected an id without .* NULs"):
        dptdr.evaluate(data, "bm25")
    with pytest.raises(DptdrError, match="without NUL"):
        measures.evaluate({"q": [Hit("p\0", 1.0)]}, {"q": {"p": 1}})
    with pytest.raises(DptdrError, match="without NUL"):
        measures.evaluate({"q": [Hit("p", 1.0)]}, {"q": {"p\0": 1}})


def test_weights_that_give_no_number_are_named(task):
    with torch.no_grad():
        broken = copy.deepcopy(task.method.prompt("query"))
    for parameter in broken.parameters():
        parameter.data.fill_(3e38)
    task.method.module, kept = nn.ModuleDict({"shared": broken}), task.method.module
    try:
        with pytest.raises(DptdrError, match="vector of text 1 of 1 contains NaN or infinity"):
            task.encode_queries(["red car"])
    finally:
        task.method.module = kept


def test_a_text_is_not_a_list_of_texts(task):
    for wrong in ("red car", {"red": 1}, [("red", "car")], [1]):
        with pytest.raises(ConfigError, match=r"expected a (list of texts|text, got)"):
            task._encode(wrong, side="query", on_progress=None)


def test_counts_below_one_are_refused(places):
    data, backbone, root = places
    for wrong in ({"limit": -1}, {"limit": True}, {"depth": 0}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"{name}: expected a whole number"):
            dptdr.evaluate(data, "bm25", **wrong)
    with pytest.raises(ConfigError, match="shard_size: expected a whole number"):
        dptdr.encode(data, backbone, out=root / "never", shard_size=0)


@pytest.mark.parametrize(
    "system", [("bm25",), ["bm25"], 5, np.zeros(3), len, {"a": 1}, None], ids=repr
)
def test_what_is_no_system_is_named(places, system):
    for stage in (dptdr.evaluate, dptdr.retrieve):
        with pytest.raises(ConfigError, match=r"^system: expected .*Encoder"):
            stage(places[0], system=system, progress=False)


def test_text_that_is_not_unicode_is_named_wherever_it_is_encoded(places, task):
    index = dptdr.build_index(places[0], task, out=places[2] / "unicode", bm25=True, progress=False)
    hybrid = dptdr.open_index(places[2] / "unicode", task, hybrid="rrf")
    for call in (
        lambda: task.encode_queries(["\ud800"]),
        lambda: task.encode_passages(["\udce9"]),
        lambda: index.search("caf\udce9 red"),
        lambda: hybrid.search("caf\udce9 red"),
        lambda: index.run([Query("q", "\ud800")]),
    ):
        with pytest.raises(ConfigError, match=r"^text 1 of 1, .*: expected valid Unicode"):
            call()


def test_what_has_no_effect_is_named(places, task):
    data, _, root = places
    index = dptdr.build_index(data, task, out=root / "idle", progress=False)
    for call, name in (
        (lambda: dptdr.encode(data, task, out=root / "v", device="meta"), "device"),
        (lambda: dptdr.load(root / "task", backbone=task.backbone, device="x"), "device"),
        (lambda: dptdr.load(root / "task", backbone=task.backbone, dtype="bfloat16"), "dtype"),
        (lambda: dptdr.train(data, out=root / "t", backbone=task.backbone, device="x"), "device"),
        (lambda: dptdr.evaluate(data, task, device="x", progress=False), "device"),
        (lambda: dptdr.retrieve(data, index, device="x", progress=False), "device"),
        (lambda: dptdr.open_index(root / "idle", task, device="x"), "device"),
        (lambda: dptdr.open_index(root / "idle", task, dense_weight=0.7), "dense_weight"),
        (lambda: dptdr.open_index(root / "idle", task, dense_weight=float("nan")), "dense_weight"),
        (lambda: dptdr.open_index(root / "idle", task, rerank_top=7), "rerank_top"),
        (lambda: dptdr.open_index(root / "idle", task, rerank=""), "rerank"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            call()


@pytest.mark.parametrize("split", ["../../x", "a/b", 1, None, "a\0b", "\ud800"], ids=repr)
def test_split_names_that_are_no_file_names_are_refused(places, tmp_path, split):
    rows = {split: [("a query", "a passage"), ("another", "a second passage")]}
    with pytest.raises(DptdrError, match="split"):
        dptdr.evaluate(rows, places[1], progress=False)


@pytest.mark.parametrize("grade", [0, -1])
def test_a_grade_of_nought_makes_no_positive(places, tmp_path, grade):
    for call in (
        lambda: dptdr.train(places[0], out=tmp_path / "o", backbone=places[1], min_grade=grade),
        lambda: dptdr.mine(places[0], out=tmp_path / "o", sources=["bm25"], min_grade=grade),
    ):
        with pytest.raises(ConfigError, match=r"^min_grade: expected a whole number of at least 1"):
            call()


def test_data_of_numbers_is_refused(places, tmp_path):
    for stage in (dptdr.train, dptdr.encode, dptdr.build_index):
        rest = {"backbone": places[1]} if stage is dptdr.train else {"encoder": places[1]}
        with pytest.raises(DptdrError, match=r"split 'a'.*expected rows"):
            stage({"a": 1}, out=tmp_path / "out", progress=False, **rest)


def test_an_iterator_of_texts_is_encoded_whole(task):
    assert task._encode(iter(["a", "b"]), side="query", on_progress=None).shape[0] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"measures": "nDCG@10"},
        {"split": None},
        {"protocol": "trec"},
        {"threads": 0},
        {"strict": True},
        {"matching": "regex"},
        {"protocol": "msmarco", "depth": 5},
        {"batch_size": -1},
    ],
)
def test_arguments_that_mean_nothing_are_named(places, wrong):
    data, _, _ = places
    with pytest.raises(ConfigError, match=list(wrong)[-1]):
        dptdr.evaluate(data, "bm25", **wrong)


def test_an_index_names_wrong_arguments(places, task):
    data, _, root = places
    index = dptdr.build_index(data, task, out=root / "arguments", progress=False)
    for name, wrong in [("k", -1), ("k", "3"), ("filters", {"lang": 1}), ("filters", "lang=en")]:
        with pytest.raises(ConfigError, match=f"^{name}: expected"):
            index.search("red car", **{name: wrong})
    with pytest.raises(ConfigError, match=r"^dense_weight: expected a number"):
        dptdr.open_index(root / "arguments", dense_weight="0.5")
    with pytest.raises(ConfigError, match=r"^bm25: expected True or False"):
        dptdr.build_index(data, task, out=root / "arguments", bm25="yes")
    with pytest.raises(ConfigError, match=r"^dtype: has no effect on a loaded encoder"):
        dptdr.evaluate(data, task, dtype="bfloat16")


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("bm25", {"device": "cpu"}, "device: has no effect with BM25"),
        ("bm25:german", {"dtype": "bfloat16"}, "dtype: has no effect with BM25"),
        ({"q1": [Hit("p1", 1.0)]}, {"batch_size": 4}, "batch_size: has no effect with a run"),
        ({"q1": [Hit("p1", 1.0)]}, {"depth": 1}, "depth: has no effect with a run"),
        ({"q1": [Hit("p1", 1.0)]}, {"threads": 1}, "threads: has no effect with a run"),
    ],
)
def test_evaluation_refuses_options_of_an_encoder_beside_another_system(
    places, system, options, message
):
    with pytest.raises(ConfigError, match=message):
        dptdr.evaluate(places[0], system, progress=False, **options)


@pytest.mark.parametrize("scores", [(1.0, 2.0), (float("nan"), 1.0), (2.0, float("-inf"))])
def test_a_run_that_is_not_ordered_by_its_scores_is_refused(places, scores):
    run = {"q1": [Hit(f"p{n}", score) for n, score in enumerate(scores)]}
    with pytest.raises(EvaluationError, match="query 'q1': expected hits with finite scores, best"):
        dptdr.evaluate(places[0], run)


def test_a_comparison_of_no_measures_is_refused(places):
    report = dptdr.evaluate(places[0], "bm25", progress=False)
    with pytest.raises(EvaluationError, match=r"expected measures from .*, got none"):
        dptdr.compare([report, report], measures=[])


def test_evaluation_by_official_rules_refuses_options_of_a_ranking(places, tmp_path):
    for options in ({"split": "dev"}, {"device": "cpu"}, {"batch_size": 4}, {"depth": 5}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: has no effect"):
            dptdr.evaluate(tmp_path / "qrels", tmp_path / "run", protocol="msmarco", **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initialisation": "task"}, "initialisation: 'task' needs from_task"),
        ({"random_scale": 0.5}, "random_scale: has no effect without random initialisation"),
        (
            {"ffn_length": 0, "ffn_learning_rate": 0.1},
            "ffn_learning_rate: has no effect without feed-forward rows",
        ),
        (
            {"prompt_length": 0, "position": "shifted"},
            "position: has no effect without attention rows",
        ),
        ({"distillation_weight": 0.3}, "distillation_weight: has no effect without distillation"),
        ({"negatives_per_query": 3}, "negatives_per_query: has no effect without negatives"),
        ({"negatives": "n.jsonl", "min_grade": 2}, "min_grade: has no effect with negatives"),
    ],
)
def test_settings_without_effect_are_refused_in_training(places, tmp_path, settings, message):
    data, backbone, _ = places
    with pytest.raises(ConfigError, match=message):
        dptdr.train(data, out=tmp_path / "task", backbone=backbone, progress=False, **settings)


def test_options_without_effect_are_refused_in_search(places, task, tmp_path):
    data = places[0]
    vectors = dptdr.encode(data, task, out=tmp_path / "vectors", progress=False).path
    out = tmp_path / "index"
    index = dptdr.build_index(vectors, task, out=out, progress=False)
    for call, message in (
        (lambda: dptdr.build_index(vectors, out=out, vectors="x"), "vectors: has no effect"),
        (lambda: dptdr.build_index(vectors, out=out, device="cpu"), "device: has no effect"),
        (lambda: dptdr.open_index(out, device="cpu"), "device: has no effect without"),
        (lambda: dptdr.retrieve(data, index, split="dev", id_prefix="q"), "split: has no effect"),
        (
            lambda: dptdr.mine(data, sources=["bm25"], out=tmp_path / "n", dtype="bfloat16"),
            "dtype: has no effect without an encoder",
        ),
        (
            lambda: dptdr.mine(data, sources=["run:r"], out=tmp_path / "n", cache=tmp_path / "c"),
            "cache: has no effect with runs",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_vectors_of_another_encoder_are_refused_before_an_index_is_replaced(places, task, tmp_path):
    data, backbone, _ = places
    vectors = dptdr.encode(data, task, out=tmp_path / "vectors", progress=False).path
    with pytest.raises(WrongPrompt):
        dptdr.build_index(vectors, backbone, out=tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("setting", "held", "wanted"),
    [
        ("position", "shifted", "unshifted"),
        ("sharing", "query-only", "tied"),
        ("sharing", "untied", "tied"),
    ],
)
def test_a_prompt_is_started_from_only_as_it_was_used(places, tmp_path, setting, held, wanted):
    data, backbone, _ = places
    lengths = {"prompt_length": 3, "ffn_length": 0}
    settings = {"backbone": backbone, **QUICK, **lengths, "max_steps": 1}
    start = tmp_path / "start"
    dptdr.train(data, out=start, **settings, **{setting: held})
    with pytest.raises(ConfigError, match=f"{setting}: expected '{held}', as in the initial"):
        dptdr.train(data, out=tmp_path / "task", from_task=start, **settings, **{setting: wanted})
    done = dptdr.train(data, out=tmp_path / "task", from_task=start, **settings, **{setting: held})
    assert getattr(done.method.config, setting) == held


def test_a_start_gives_its_lengths_layers_and_sharing(places, tmp_path):
    data, backbone, _ = places
    settings = {"backbone": backbone, **QUICK, "max_steps": 1}
    del settings["prompt_length"]
    own = {"prompt_length": 3, "ffn_length": 5, "prompt_layers": 2, "sharing": "untied"}
    start = tmp_path / "start"
    dptdr.train(data, out=start, **settings, **own)

    done = dptdr.train(data, out=tmp_path / "task", from_task=start, **settings)

    found = done.method.config
    assert {name: getattr(found, name) for name in own} == own
    for name, wrong in (("prompt_length", 4), ("ffn_length", 0), ("prompt_layers", 1)):
        words = f"^{name}: expected {own[name]}, as in the initial prompt, got {wrong}; omit it$"
        with pytest.raises(ConfigError, match=words):
            dptdr.train(data, out=tmp_path / "t", from_task=start, **settings, **{name: wrong})
    assert not (tmp_path / "t").exists()


def test_negatives_of_another_corpus_are_refused(places, tmp_path):
    data, backbone, _ = places
    mined = tmp_path / "negatives.jsonl"
    dptdr.mine(data, sources=["bm25"], out=mined, progress=False)
    other = shutil.copytree(data, tmp_path / "other")
    lines = (other / "corpus.jsonl").read_text().splitlines(keepends=True)
    (other / "corpus.jsonl").write_text("".join([*lines[1:], lines[0].replace('"p0"', '"new"')]))
    with pytest.raises(DataError, match="mined from a corpus other than"):
        dptdr.train(other, out=tmp_path / "task", backbone=backbone, negatives=mined, **QUICK)
    settings = QUICK | {"max_steps": 1}
    dptdr.train(data, out=tmp_path / "task", backbone=backbone, negatives=mined, **settings)


def test_a_backbone_of_another_activation_does_not_count_as_the_same_training(places, tmp_path):
    data, backbone, _ = places
    copied = shutil.copytree(backbone, tmp_path / "bert")
    settings = QUICK | {"max_steps": 1}
    dptdr.train(data, out=tmp_path / "task", backbone=copied, **settings)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(OutputError, match=r"probe: was \["):
        dptdr.train(data, out=tmp_path / "task", backbone=copied, **settings)


@pytest.mark.parametrize(
    "name", ["meta.json", "corpus.jsonl", "config.json", "00000.npy", "prompt.safetensors"]
)
def test_a_report_never_replaces_a_part_of_an_artefact(places, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match="not part of a task, data, vectors or an index"):
        dptdr.evaluate(places[0], "bm25", run_out=tmp_path / name, progress=False)
    assert (tmp_path / name).read_text() == "precious"


def test_a_text_that_is_none_is_named_by_its_place(task):
    with pytest.raises(ConfigError, match=r"texts\[1\]: expected a text, got "):
        task._encode(["a", None], side="query", on_progress=None)
    with pytest.raises(ConfigError, match=r"texts\[0\]: expected a text, got "):
        task._encode([b"a"], side="passage", on_progress=None)


@pytest.mark.parametrize("out", ["", ".", "..", "/"])
def test_an_output_without_a_name_is_refused_by_every_stage(places, tmp_path, monkeypatch, out):
    data, backbone, _ = places
    monkeypatch.chdir(tmp_path)
    for stage in (
        lambda: dptdr.train(data, out=out, backbone=str(backbone)),
        lambda: dptdr.pretrain(data, out=out, backbone=str(backbone)),
        lambda: dptdr.mine(data, out=out),
        lambda: dptdr.encode(data, str(backbone), out=out),
    ):
        with pytest.raises(DptdrError, match="expected a named output"):
            stage()
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_are_refused_before_a_run_begins(places, tmp_path):
    data, backbone, _ = places
    for wrong, words in (
        ({"matryoshka": (999,)}, "matryoshka: expected dimensions between 1 and"),
        ({"batch_size": 10**9}, "batch_size: expected .*at most 1000000"),
        ({"negatives": ""}, "expected a path, got an empty text"),
        ({"tensorboard": ""}, "expected a path, got an empty text"),
    ):
        with pytest.raises(ConfigError, match=words):
            dptdr.train(data, out=tmp_path / "t", backbone=str(backbone), **wrong)
        assert list(tmp_path.iterdir()) == []
