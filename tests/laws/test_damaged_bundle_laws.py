"""A bundle that somebody else made, or that a disk has damaged, loads or is refused, no more."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dptdr.config.methods import DeepPromptConfig, LoraConfig
from dptdr.errors import DptdrError
from dptdr.io.atomic import sha256_file
from dptdr.model import Encoder, MethodFactory, load_task, save_task
from helpers.tiny import tiny_backbone

ODD = [
    *(None, True, -1, 0, 1, 3, 2**31, 10**400, 1e-300, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "../task.json", "/etc/passwd", "\x00", "\ud800", "x" * 5000, "untied", "full"),
    *([], {}, [[]], {"a": {}}, [1] * 9),
]
TENSORS = [
    torch.zeros(()),
    torch.zeros(0, 2, 4, 3, 8),
    torch.zeros(3, 2, 4, 0, 8),
    torch.zeros(3, 2, 4, 3, 8, dtype=torch.int64),
    torch.zeros(3, 2, 4, 3, 8, dtype=torch.float64),
    torch.full((3, 2, 4, 3, 8), torch.nan),
    torch.zeros(2, 3),
]
MOST_MEGABYTES = 150


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def bundles(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    prompt = DeepPromptConfig(prompt_length=3, ffn_length=2)
    for name, method, config in (
        ("prompt", "deep-prompt", prompt),
        ("lora", "lora", LoraConfig(rank=2)),
    ):
        made = MethodFactory().build(method, backbone, config, seed=0)
        save_task(folder / name, Encoder(backbone, method=made))
    return folder


def change_manifest(draw, folder):
    file = folder / "task.json"
    values = json.loads(file.read_text())
    places = [values, *(values[name] for name in ("settings", "limits"))]
    place = places[draw(st.integers(0, len(places) - 1))]
    name = draw(st.sampled_from([*sorted(place), "more"]))
    if draw(st.booleans()):
        place[name] = draw(st.sampled_from(ODD))
    else:
        place.pop(name, None)
    file.write_text(json.dumps(values))


def change_weights(draw, folder):
    manifest = json.loads((folder / "task.json").read_text())
    file = folder / manifest["weights_file"]
    if draw(st.booleans()):
        state = load_file(file)
        name = draw(st.sampled_from([*sorted(state), "more", "shared.ffn_more"]))
        if draw(st.booleans()):
            state[name] = draw(st.sampled_from(TENSORS))
        else:
            state.pop(name, None)
        save_file(state, file)
    else:
        data = bytearray(file.read_bytes())
        data[draw(st.integers(0, min(len(data), 700) - 1))] ^= draw(st.integers(1, 255))
        file.write_bytes(bytes(data[: draw(st.sampled_from([len(data), 7, 100, len(data) - 1]))]))
    manifest["weights_sha256"] = sha256_file(file)
    (folder / "task.json").write_text(json.dumps(manifest))


@seed(14)
@settings(max_examples=200, database=None)
@given(st.data())
def test_a_mutated_bundle_is_read_or_refused_by_our_own_error(bundles, backbone, data):
    folder = bundles / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundles / data.draw(st.sampled_from(["prompt"] * 5 + ["lora"])), folder)
    change = data.draw(st.sampled_from([change_manifest, change_manifest, change_weights]))
    change(data.draw, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        vectors = load_task(folder, backbone=backbone).encode_queries(["red car"])
    except DptdrError:
        pass
    else:
        assert np.isfinite(vectors).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MEGABYTES * 1024
