"""Damage to an encoder, an adapter, a checkpoint, a table or a report is one error or no harm."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptdr.config.methods import DeepPromptConfig
from dptdr.data.formats.conversion import convert
from dptdr.errors import DptdrError
from dptdr.evaluation.report import EvaluationReport
from dptdr.io.resume import claim
from dptdr.model import Backbone, Encoder, Limits, MethodFactory, load_task, save_task
from dptdr.model.imports.authors import import_authors
from dptdr.model.imports.peft import export_peft, import_peft
from helpers.authors import save_authors
from helpers.damage import DAMAGE, JSON_VALUES, damage, exchange
from helpers.tiny import save_tiny

LIMITS = Limits(max_query_tokens=12, max_passage_tokens=16)
TEXTS = ["red fox", "a lazy dog sleeps"]


def quiet(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


class Damaged:
    """A copy of a folder whose files can be damaged and restored."""

    def __init__(self, folder, place):
        self.folder = shutil.copytree(folder, place, dirs_exist_ok=True)
        self.whole = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def __call__(self, name, change):
        path = self.folder / name
        path.write_bytes(change(self.whole[path]))
        return self.folder

    def restore(self):
        for path, content in self.whole.items():
            path.write_bytes(content)


def changes(*, as_json):
    """Give a function from a file's bytes to damaged ones; of JSON also one value exchanged."""
    bytewise = st.tuples(*DAMAGE).map(lambda how: lambda content: damage(content, *how))
    if not as_json:
        return bytewise
    valuewise = st.tuples(st.integers(0, 500), JSON_VALUES).map(
        lambda how: (
            lambda content: exchange(content.decode(), *how).encode("utf-8", "surrogatepass")
        )
    )
    return bytewise | valuewise


@st.composite
def cases(draw, names):
    name = draw(st.sampled_from(names))
    return name, draw(changes(as_json=name.endswith(".json")))


def refused(use):
    """Run what reads a damaged file; an error is one line of our own."""
    message = ""
    try:
        use()
    except DptdrError as error:
        message = str(error)
    assert "\n" not in message
    return bool(message)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture(scope="module")
def damaged_encoder(encoder, tmp_path_factory):
    return Damaged(encoder, tmp_path_factory.mktemp("damaged") / "bert")


@given(case=cases(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]))
@quiet(200)
def test_a_damaged_encoder(damaged_encoder, case):
    try:
        folder = damaged_encoder(*case)

        def use():
            vectors = Encoder(Backbone.load(str(folder))).encode_passages(TEXTS)
            assert np.isfinite(vectors).all()

        refused(use)
    finally:
        damaged_encoder.restore()


@pytest.fixture(scope="module")
def adapter(encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapter")
    backbone = Backbone.load(str(encoder))
    config = DeepPromptConfig(prompt_length=3, ffn_length=0, position="shifted")
    method = MethodFactory().build("deep-prompt", backbone, config, seed=0)
    save_task(root / "task", Encoder(backbone, method=method))
    export_peft(root / "task", root / "peft", backbone=backbone)
    return Damaged(root / "peft", root / "damaged")


@given(case=cases(["adapter_config.json", "adapter_model.safetensors"]))
@quiet(150)
def test_a_damaged_adapter(encoder, adapter, tmp_path, case):
    try:
        source, out = adapter(*case), tmp_path / "task"

        def use():
            import_peft(source, out, backbone=str(encoder), limits=LIMITS)
            vectors = load_task(out, backbone=Backbone.load(str(encoder))).encode_queries(TEXTS)
            assert np.isfinite(vectors).all()

        if refused(use):
            assert not (out / "task.json").exists()
    finally:
        shutil.rmtree(tmp_path / "task", ignore_errors=True)
        adapter.restore()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("authors")
    save_authors(root / "whole")
    return Damaged(root / "whole", root / "damaged")


@given(data=st.data())
@quiet(80)
def test_a_damaged_checkpoint_of_the_authors(checkpoint, tmp_path, data):
    names = sorted(path.name for path in checkpoint.whole)
    weights = [name for name in names if name.startswith(("model", "pytorch"))]
    name, change = data.draw(cases(["config.json", *weights]))
    try:
        source, out = checkpoint(name, change), tmp_path / "imported"

        def use():
            import_authors(source, out, limits=LIMITS)
            backbone = Backbone.load(str(out / "backbone"))
            vectors = load_task(out / "task", backbone=backbone).encode_queries(TEXTS)
            assert np.isfinite(vectors).all()

        if refused(use):
            assert not (out / "task").exists()
    finally:
        shutil.rmtree(tmp_path / "imported", ignore_errors=True)
        checkpoint.restore()


TABLES = {
    "faq.csv": 'question,answer\nhow to open,"use ""open"""\nhow to close,"use\nclose"\nwhy,so\n',
    "pairs.tsv": "anchor\tpositive\tscore\nred\ta fox\t1\nblue\ta bird\t0\n",
    "pairs.jsonl": '{"query": "red", "positive": ["a", "b"]}\n{"query": "b", "positive": "c"}\n',
    "pairs.json": '[{"query": "red", "positive": "a fox"}, {"query": "b", "positive": "c"}]',
    "clicks.csv": "query,document,clicks\nred,a fox,3\nblue,a bird,1\n",
}


@pytest.mark.parametrize("name", TABLES)
@given(change=changes(as_json=False))
@quiet(100)
def test_a_damaged_table(tmp_path, name, change):
    (tmp_path / name).write_bytes(change(TABLES[name].encode()))
    out = tmp_path / "out"
    try:
        if refused(lambda: convert(tmp_path / name, out=out)):
            assert not out.exists()
            assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    finally:
        shutil.rmtree(out, ignore_errors=True)


@given(change=changes(as_json=True))
@quiet(200)
def test_a_damaged_report(tmp_path, change):
    whole = EvaluationReport(
        data="D",
        split="test",
        system="S",
        judgements_fingerprint="0" * 64,
        protocol="ir_measures",
        queries=2,
        measures={"nDCG@10": 0.5},
        per_query={"nDCG@10": {"q1": 0.25, "q2": 0.75}},
    )
    path = tmp_path / "report.json"
    path.write_bytes(change(json.dumps(whole.as_json()).encode()))
    refused(lambda: EvaluationReport.read(path))


@given(change=changes(as_json=True))
@quiet(150)
def test_a_damaged_record_of_an_output(tmp_path, change):
    out = tmp_path / "out.jsonl"
    record = tmp_path / ".out.jsonl.made.json"
    out.write_text("a line\n")
    with claim(out) as output:
        output.begin({"seed": 0}, overwrite=True)
        output.finish({"count": 1})
    record.write_bytes(change(record.read_bytes()))

    def use():
        with claim(out) as output:
            output.begin({"seed": 0})

    refused(use)
    assert out.read_text() == "a line\n"
