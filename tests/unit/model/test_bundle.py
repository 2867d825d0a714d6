"""Task bundles: what is written comes back, and nothing else is believed."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dptdr
from dptdr.config.methods import (
    DeepPromptConfig,
    EmptyConfig,
    LoraConfig,
    ShallowPromptConfig,
)
from dptdr.errors import BundleError, OutputError, WrongBackbone
from dptdr.io.atomic import sha256_file
from dptdr.model import (
    Encoder,
    Limits,
    MethodFactory,
    load_encoder,
    load_task,
    read_manifest,
    save_task,
)
from dptdr.model import bundle as bundle_module
from helpers.tiny import save_tiny, tiny_backbone

TEXTS = ["red car", "the old house of the river stone", "cat", "how does the moon grow"]
LIMITS = Limits(max_query_tokens=12, max_passage_tokens=20)
CASES = {
    "deep-prompt tied": ("deep-prompt", DeepPromptConfig(prompt_length=3)),
    "deep-prompt untied": ("deep-prompt", DeepPromptConfig(prompt_length=3, sharing="untied")),
    "deep-prompt query-only": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, sharing="query-only"),
    ),
    "deep-prompt ffn": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, ffn_length=4, sharing="untied"),
    ),
    "deep-prompt ffn alone": ("deep-prompt", DeepPromptConfig(prompt_length=0, ffn_length=4)),
    "deep-prompt upper layers": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, ffn_length=4, prompt_layers=2),
    ),
    "deep-prompt shifted": ("deep-prompt", DeepPromptConfig(prompt_length=3, position="shifted")),
    "deep-prompt reparametrised": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, reparametrisation=5, dropout=0.2),
    ),
    "shallow-prompt": ("shallow-prompt", ShallowPromptConfig(prompt_length=3)),
    "shallow-prompt untied": (
        "shallow-prompt",
        ShallowPromptConfig(prompt_length=3, sharing="untied"),
    ),
    "lora": ("lora", LoraConfig(rank=2)),
    "bitfit": ("bitfit", EmptyConfig()),
    "full": ("full", EmptyConfig()),
}


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"), seed=3)


@pytest.fixture(scope="module")
def backbone(backbone_folder):
    return dptdr.model.Backbone.load(str(backbone_folder))


def tuned(backbone, case="deep-prompt tied", *, seed=0):
    """An encoder whose trained parameters were all moved, as training would."""
    name, config = CASES[case]
    factory = MethodFactory(query_texts=TEXTS[:2], passage_texts=TEXTS[2:])
    method = factory.build(name, backbone, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Encoder(backbone, method=method, limits=LIMITS)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("case", CASES)
def test_loaded_task_makes_the_vectors_that_were_saved(backbone, tmp_path, case):
    encoder = tuned(backbone, case)
    save_task(tmp_path / "task", encoder)
    loaded = load_task(tmp_path / "task")
    assert loaded.name == "task"
    assert loaded.limits == LIMITS
    np.testing.assert_array_equal(loaded.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    np.testing.assert_array_equal(loaded.encode_passages(TEXTS), encoder.encode_passages(TEXTS))
    assert loaded.query_fingerprint == encoder.query_fingerprint
    assert loaded.passage_fingerprint == encoder.passage_fingerprint
    bare = Encoder(backbone, limits=LIMITS)
    assert np.abs(bare.encode_queries(TEXTS) - loaded.encode_queries(TEXTS)).max() > 1e-3


def test_query_only_task_leaves_passages_to_the_bare_backbone(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone, "deep-prompt query-only"))
    loaded = load_task(tmp_path / "task")
    bare = Encoder(backbone, limits=LIMITS)
    np.testing.assert_array_equal(loaded.encode_passages(TEXTS), bare.encode_passages(TEXTS))
    assert loaded.passage_fingerprint == bare.passage_fingerprint
    assert loaded.query_fingerprint != bare.query_fingerprint


def test_manifest_says_what_was_saved(backbone, backbone_folder, tmp_path):
    encoder = tuned(backbone)
    written = save_task(
        tmp_path / "task",
        encoder,
        name="cars",
        training={"steps": 150},
        measures={"nDCG@10": 0.5},
    )
    values = json.loads((tmp_path / "task" / "task.json").read_text())
    assert values == {
        "name": "cars",
        "method": "deep-prompt",
        "settings": {
            "prompt_length": 3,
            "ffn_length": 0,
            "prompt_layers": None,
            "sharing": "tied",
            "initialisation": "tokens",
            "random_scale": 0.02,
            "dropout": 0.0,
            "position": "unshifted",
            "reparametrisation": 0,
        },
        "backbone": str(backbone_folder),
        "backbone_fingerprint": backbone.fingerprint,
        "backbone_probe": list(backbone.probe),
        "limits": {"max_query_tokens": 12, "max_passage_tokens": 20},
        "weights_file": "prompt.safetensors",
        "weights_sha256": sha256_file(tmp_path / "task" / "prompt.safetensors"),
        "trained_parameters": 3 * 2 * 4 * 3 * 8,
        "query_fingerprint": encoder.query_fingerprint,
        "passage_fingerprint": encoder.passage_fingerprint,
        "training": {"steps": 150},
        "measures": {"nDCG@10": 0.5},
        "dptdr_version": dptdr.__version__,
        "format_version": 2,
        "weights_dtype": "float32",
    }
    assert read_manifest(tmp_path / "task") == written
    card = (tmp_path / "task" / "README.md").read_text()
    for said in ("# cars", "nDCG@10 | 0.5000", "steps | 150", backbone.fingerprint, "576 trained"):
        assert said in card


def test_rows_are_stored_as_the_method_page_lays_them_out(backbone, tmp_path):
    encoder = tuned(backbone, "deep-prompt reparametrised")
    save_task(tmp_path / "task", encoder)
    state = load_file(tmp_path / "task" / "prompt.safetensors")
    assert {name: tuple(rows.shape) for name, rows in state.items()} == {"shared": (3, 2, 4, 3, 8)}
    torch.testing.assert_close(state["shared"], encoder.method.prompt("query").rows().detach())


def test_same_state_saved_twice_gives_identical_bytes(backbone, tmp_path):
    save_task(tmp_path / "one", tuned(backbone), name="task", measures={"b": 1.0, "a": 2.0})
    save_task(tmp_path / "two", tuned(backbone), name="task", measures={"a": 2.0, "b": 1.0})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_default_prompt_on_minilm_is_under_two_megabytes(minilm, tmp_path):
    method = MethodFactory(query_texts=TEXTS).build(
        "deep-prompt", minilm, DeepPromptConfig(), seed=0
    )
    manifest = save_task(tmp_path / "task", Encoder(minilm, method=method))
    assert manifest.backbone == "minilm"
    assert manifest.trained_parameters == 2 * 6 * 384 * 16 + 6 * 80 * (2 * 384 + 1)
    assert sum(len(data) for data in contents(tmp_path / "task").values()) < 2_000_000


def test_bare_backbone_cannot_be_saved_as_a_task(backbone, tmp_path):
    with pytest.raises(ValueError, match="expected a tuned task to save"):
        save_task(tmp_path / "task", Encoder(backbone))
    assert not list(tmp_path.iterdir())


def test_backbone_is_named_so_that_another_working_folder_finds_it(
    backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(backbone_folder.parent)
    backbone = dptdr.model.Backbone.load(f"./{backbone_folder.name}")
    save_task(tmp_path / "task", tuned(backbone))
    monkeypatch.chdir(tmp_path)
    assert read_manifest(tmp_path / "task").backbone == str(backbone_folder)
    load_task(tmp_path / "task")


def test_wrong_backbone_is_refused_with_both_fingerprints(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone))
    other = tiny_backbone(seed=4)
    with pytest.raises(WrongBackbone) as caught:
        load_task(tmp_path / "task", backbone=other)
    assert backbone.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert "tiny-bert" in str(caught.value)


def test_prompt_rows_start_another_task(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone))
    config = DeepPromptConfig(prompt_length=3, sharing="untied", initialisation="task")
    config, rows = bundle_module.load_prompt_rows(
        tmp_path / "task", backbone=backbone, config=config, given=["sharing"]
    )
    method = MethodFactory(rows=rows).build("deep-prompt", backbone, config, seed=0)
    for side in ("query", "passage"):
        torch.testing.assert_close(method.state()[side], rows["shared"])
    save_task(tmp_path / "lora", tuned(backbone, "lora"))
    with pytest.raises(BundleError, match="expected a deep prompt to start from, got 'lora'"):
        bundle_module.load_prompt_rows(
            tmp_path / "lora", backbone=backbone, config=config, given=()
        )


def edit(path, **changes):
    file = path / "task.json"
    values = json.loads(file.read_text())
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    file.write_text(json.dumps(values))


@pytest.fixture
def task(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone))
    return tmp_path / "task"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"format_version": 99},
            r"expected at most 2, got the number 99; upgrade dptdr",
        ),
        ({"limits": None}, r"task.json: field 'limits' is missing"),
        ({"colour": "red"}, r"unknown field 'colour'"),
        ({"settings": [1]}, r"field 'settings': expected dict, got a list"),
        ({"limits": {"max_query_tokens": 0}}, r"field 'limits': expected positive"),
        ({"weights_file": "../else.safetensors"}, r"expected a file name inside the bundle"),
        ({"weights_file": "else.safetensors"}, r"weights file is missing"),
        ({"weights_sha256": "0" * 64}, r"expected SHA-256 0{64}, got .*damaged"),
        ({"backbone_probe": 5}, r"field 'backbone_probe': expected list, got the number 5"),
        ({"backbone_probe": [True]}, r"field 'backbone_probe': expected a list of finite numbers"),
        ({"backbone_probe": [10**400]}, r"field 'backbone_probe': expected a list of finite numb"),
        ({"trained_parameters": 10**30}, r"'trained_parameters': expected an integer from 0 to"),
        ({"trained_parameters": True}, r"'trained_parameters': expected an integer .* got true"),
        ({"measures": {"RR": 10**30}}, r"field 'measures': expected plain JSON, Integer exceeds"),
        ({"name": "\ud800"}, r"field 'name': expected plain JSON, str is not valid UTF-8"),
        (
            {"method": "magic"},
            r"field 'method': expected one of deep-prompt, .* got the text 'magic'",
        ),
        ({"settings": {"colour": 1}}, r"task: method 'deep-prompt': .*colour"),
        (
            {"settings": {"sharing": "untied", "prompt_length": 3}},
            r"task: expected prompts \['passage', 'query'\]",
        ),
    ],
)
def test_broken_manifest_is_named(task, backbone, changes, said):
    edit(task, **changes)
    with pytest.raises(BundleError, match=said):
        load_task(task, backbone=backbone)


def test_all_problems_of_a_manifest_are_named_at_once(task):
    edit(task, limits=None, name=3, colour="red")
    with pytest.raises(BundleError) as caught:
        read_manifest(task)
    for said in (
        "'limits' is missing",
        "'name': expected str, got the number 3",
        "unknown field 'colour'",
    ):
        assert said in str(caught.value)


def test_missing_folder_and_missing_manifest_are_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BundleError, match=r"expected a task bundle with a task\.json"):
            read_manifest(path)


def test_manifest_that_is_not_json_is_named_with_its_line(task):
    (task / "task.json").write_text('{"name": "x",\n "method": }')
    with pytest.raises(BundleError, match=r"task\.json, line 2: .*train or copy it again"):
        read_manifest(task)
    (task / "task.json").write_text("[]")
    with pytest.raises(BundleError, match="expected a JSON object"):
        read_manifest(task)


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deeply_nested_manifest_is_refused(task, depth):
    whole = json.loads((task / "task.json").read_text()) | {"training": "HERE"}
    nested = '{"a":' + "[" * depth + "]" * depth + "}"
    (task / "task.json").write_text(json.dumps(whole).replace('"HERE"', nested))
    with pytest.raises(BundleError, match=r"task\.json.*(recursion|Recursion)"):
        read_manifest(task)


def test_damaged_weights_are_refused(task):
    file = task / "prompt.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="damaged or was replaced"):
        load_task(task)


def replace_weights(task, data):
    file = task / "prompt.safetensors"
    file.write_bytes(data) if isinstance(data, bytes) else save_file(data, file)
    edit(task, weights_sha256=sha256_file(file))


def test_weights_that_do_not_fit_are_refused_although_the_checksum_agrees(task, backbone):
    replace_weights(task, {"shared": torch.zeros(3, 2, 4, 3, 9)})
    with pytest.raises(BundleError, match=r"expected prompt rows of shape .* got \(3, 2, 4, 3, 9"):
        load_task(task, backbone=backbone)
    replace_weights(task, b"not safetensors at all")
    with pytest.raises(BundleError, match="expected a safetensors file"):
        load_task(task, backbone=backbone)


@pytest.mark.parametrize("case", ["deep-prompt ffn", "lora", "full"])
def test_weights_stored_in_16_bits_are_read_as_the_float32_that_the_fingerprint_means(
    tmp_path, case
):
    encoder = tuned(tiny_backbone(), case)
    exact = encoder.encode_queries(TEXTS)
    save_task(tmp_path / "exact", encoder)
    manifest = save_task(tmp_path / "task", encoder, dtype="float16")
    assert (manifest.weights_dtype, read_manifest(tmp_path / "exact").weights_dtype) == (
        "float16",
        "float32",
    )
    sizes = [(tmp_path / n / manifest.weights_file).stat().st_size for n in ("task", "exact")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = load_task(tmp_path / "task", backbone=tiny_backbone())
    np.testing.assert_array_equal(loaded.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    assert 0 < np.abs(loaded.encode_queries(TEXTS) - exact).max() < 0.02
    assert loaded.query_fingerprint == manifest.query_fingerprint
    assert next(iter(loaded.method.trained().values())).dtype == torch.float32


def test_a_weight_beyond_float16_is_refused(backbone, tmp_path):
    encoder = tuned(backbone)
    with torch.no_grad():
        next(iter(encoder.method.trained().values()))[0] = 1e6
    with pytest.raises(
        BundleError, match="a weight is out of range for float16; use bfloat16 or float32"
    ):
        save_task(tmp_path / "task", encoder, dtype="float16")
    save_task(tmp_path / "task", encoder, dtype="bfloat16")


@pytest.mark.parametrize(
    ("case", "claim", "said"),
    [
        ("deep-prompt tied", {"prompt_length": 1_000_000}, "prompt_length: expected 0 to 4096"),
        (
            "deep-prompt tied",
            {"prompt_length": 4096},
            "expected 3, the length of the initial prompt, got 4096",
        ),
        (
            "deep-prompt ffn",
            {"ffn_length": 4096},
            "expected 4, the length of the initial",
        ),
        ("deep-prompt tied", {"prompt_layers": 2}, r"rows of shape \(2, 2, 4, 'prompt', 8\), got"),
        ("deep-prompt tied", {"prompt_layers": 9}, "prompt_layers: expected 1 to 3, got 9"),
        ("shallow-prompt", {"prompt_length": 1_000_000}, "leaves no room for text"),
        (
            "lora",
            {"rank": 1_000_000},
            r"rank: expected the rank of the saved weights .*got 1000000",
        ),
    ],
)
def test_sizes_that_only_the_settings_claim_are_refused_before_they_are_made(
    tmp_path, backbone, monkeypatch, case, claim, said
):
    method, config = CASES[case]
    encoder = Encoder(backbone, method=MethodFactory().build(method, backbone, config, seed=0))
    save_task(tmp_path / "task", encoder)
    values = json.loads((tmp_path / "task" / "task.json").read_text())
    edit(tmp_path / "task", settings=values["settings"] | claim)
    # What would make them.
    monkeypatch.setattr("dptdr.model.methods.DeepPrompt", None)
    monkeypatch.setattr("dptdr.model.methods.random_rows", None)
    monkeypatch.setattr("dptdr.model.methods.WeightsMethod", None)

    with pytest.raises(BundleError, match=said):
        load_task(tmp_path / "task", backbone=backbone)


@pytest.mark.parametrize("name", ["task.json", "prompt.safetensors"])
def test_links_out_of_a_bundle_are_refused_but_not_those_of_the_hubs_cache(
    task, backbone, tmp_path, name
):
    blobs = tmp_path / "models--org--task" / "blobs"
    snapshot = tmp_path / "models--org--task" / "snapshots" / "task"
    for folder in (blobs, snapshot.parent):
        folder.mkdir(parents=True)
    shutil.copytree(task, snapshot)
    for folder, place in ((task, tmp_path), (snapshot, blobs)):
        (folder / name).rename(place / "elsewhere")
        (folder / name).symlink_to(place / "elsewhere")
    with pytest.raises(BundleError, match=f"{name}: expected a file, got a link to"):
        load_task(task, backbone=backbone)
    load_task(snapshot, backbone=backbone)


@pytest.mark.parametrize("step", ["save_file", "write_json", "write_card"])
def test_full_disk_leaves_the_old_bundle_and_says_so(task, backbone, monkeypatch, step):
    before = contents(task)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = bundle_module.safetensors.torch if step == "save_file" else bundle_module
    monkeypatch.setattr(where, step, fail)
    with pytest.raises(OutputError, match=r"cannot be written .*No space left on device"):
        save_task(task, tuned(backbone, seed=5))
    assert contents(task) == before
    assert [p.name for p in task.parent.iterdir()] == ["task"]
    monkeypatch.undo()
    load_task(task, backbone=backbone)


def test_error_in_the_middle_of_a_first_save_leaves_nothing(backbone, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(bundle_module, "write_card", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        save_task(tmp_path / "task", tuned(backbone))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from dptdr.io import atomic as files
from dptdr.model import bundle, load_task, save_task

task, moment = Path(sys.argv[1]), sys.argv[2]
encoder = load_task(task)
with torch.no_grad():
    for parameter in encoder.method.trained().values():
        parameter.add_(1.0)

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "writing":
    bundle.write_card = kill
else:
    rename = Path.rename
    # The first rename moves the old bundle aside; the new one never gets its name.
    Path.rename = lambda path, target: kill() if target == task else rename(path, target)
save_task(task, encoder)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_process_killed_in_the_middle_of_a_save_leaves_the_old_bundle(task, backbone, moment):
    before = contents(task)
    expected = load_task(task, backbone=backbone).encode_queries(TEXTS)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(task), moment], capture_output=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert task.exists() == (moment == "writing")
    np.testing.assert_array_equal(
        load_task(task, backbone=backbone).encode_queries(TEXTS), expected
    )
    assert contents(task) == before
    save_task(task, tuned(backbone, seed=6))
    assert contents(task) != before


def test_load_encoder_takes_a_task_a_backbone_or_both(task, backbone, backbone_folder):
    tuned_vectors = load_encoder(task=task).encode_queries(TEXTS)
    both = load_encoder(task=task, backbone=str(backbone_folder))
    np.testing.assert_array_equal(both.encode_queries(TEXTS), tuned_vectors)
    bare = load_encoder(backbone=str(backbone_folder))
    np.testing.assert_array_equal(
        bare.encode_queries(TEXTS), Encoder(backbone).encode_queries(TEXTS)
    )
    with pytest.raises(ValueError, match="expected a task bundle or a backbone, got neither"):
        load_encoder()


def test_task_runs_in_bfloat16_under_the_same_fingerprints(task):
    exact, rounded = load_encoder(task=task), load_encoder(task=task, dtype="bfloat16")
    assert rounded.backbone.model.dtype == torch.bfloat16
    assert rounded.query_fingerprint == exact.query_fingerprint
    one, other = exact.encode_queries(TEXTS), rounded.encode_queries(TEXTS)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert 0.99 < cosine.min() < 1.0


def test_bundle_of_version_1_has_no_feed_forward_rows(backbone, tmp_path):
    encoder = tuned(backbone)
    save_task(tmp_path / "task", encoder)
    path = tmp_path / "task" / "task.json"
    values = json.loads(path.read_text())
    assert values["settings"].pop("ffn_length") == 0
    path.write_text(json.dumps(values | {"format_version": 1}))

    loaded = load_task(tmp_path / "task")

    assert loaded.method.config.ffn_length == 0
    assert loaded.query_fingerprint == values["query_fingerprint"] == encoder.query_fingerprint
    np.testing.assert_array_equal(loaded.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
