"""Encoding without padding gives the vectors of padded encoding, or is not done."""

import numpy as np
import pytest
import torch

from dptdr.config.methods import DeepPromptConfig, EmptyConfig, LoraConfig, ShallowPromptConfig
from dptdr.errors import DptdrError
from dptdr.model import Encoder, MethodFactory
from dptdr.model.kernels import OrderedLinear
from dptdr.model.unpadded import Unpadded
from helpers.tiny import tiny_backbone

TEXTS = ["red car", "", "the old house of the river stone and the garden", "cat", "big dog", "how"]
DEEP = {"prompt_length": 3, "initialisation": "random", "random_scale": 1.0}


def tuned(backbone, name, config):
    return Encoder(backbone, method=MethodFactory().build(name, backbone, config, seed=3))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sharing": "untied"},
        {"sharing": "query-only"},
        {"position": "shifted"},
        {"reparametrisation": 8},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "tied",
)
def test_vectors_of_deep_prompts_do_not_change(architecture, settings):
    def make():
        backbone = tiny_backbone(architecture)
        return tuned(backbone, "deep-prompt", DeepPromptConfig(**DEEP | settings))

    padded, unpadded = make(), make()
    assert unpadded.eval() == ""
    for one, other in (
        (padded.encode_queries(TEXTS), unpadded.encode_queries(TEXTS)),
        (padded.encode_passages(TEXTS), unpadded.encode_passages(TEXTS)),
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert padded.query_fingerprint == unpadded.query_fingerprint
    assert padded.passage_fingerprint == unpadded.passage_fingerprint


@pytest.mark.parametrize(
    ("name", "config"), [("lora", LoraConfig()), ("full", EmptyConfig()), ("bitfit", EmptyConfig())]
)
def test_vectors_of_trained_weights_do_not_change(name, config):
    padded, unpadded = (tuned(tiny_backbone("bert"), name, config) for _ in range(2))
    for encoder in (padded, unpadded):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.method.trained().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    before = unpadded.passage_fingerprint
    assert unpadded.eval() == ""
    np.testing.assert_allclose(
        padded.encode_passages(TEXTS), unpadded.encode_passages(TEXTS), atol=1e-5
    )
    assert unpadded.passage_fingerprint == before


def test_the_bare_backbone_is_packed_and_its_layers_ordered(monkeypatch):
    backbone = tiny_backbone("bert")
    encoder = Encoder(backbone)
    expected = encoder.encode_passages(TEXTS)
    assert encoder.eval() == ""
    assert any(isinstance(module, OrderedLinear) for module in backbone.model.modules())
    monkeypatch.setattr(backbone, "pad", lambda ids: pytest.fail("was padded"))
    seen = []
    made = encoder.encode_passages(TEXTS, on_progress=lambda *pair: seen.append(pair))
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert seen[-1] == (6, 6)
    assert encoder.encode_passages([]).shape == (0, 32)


def test_many_texts_are_cut_into_batches(monkeypatch):
    encoder = Encoder(tiny_backbone("bert"))
    expected = encoder.encode_passages(TEXTS)
    encoder.eval()
    monkeypatch.setattr("dptdr.model.encoder._UNPADDED_TOKENS", 8)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=1e-5)


def test_another_precision_for_the_moment_is_padded():
    encoder = Encoder(tiny_backbone("bert"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = encoder.encode_passages(TEXTS)
        encoder.eval()
        encoder._unpadded.vectors = lambda *args, **options: pytest.fail("was packed")
        np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=2e-2)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mpnet", "does not use the transformers attention registry"),
        ("modernbert", "local attention windows"),
    ],
)
def test_what_cannot_be_packed_says_why_and_encodes_as_before(architecture, reason):
    encoder = Encoder(tiny_backbone(architecture))
    expected = encoder.encode_passages(TEXTS)
    assert reason in encoder.eval()
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS), expected)


def test_shallow_prompts_stay_padded():
    encoder = tuned(tiny_backbone("bert"), "shallow-prompt", ShallowPromptConfig(prompt_length=2))
    assert "shallow prompts" in encoder.eval()


def test_a_backbone_whose_packed_vectors_differ_is_left_as_it_was(monkeypatch):
    backbone = tiny_backbone("bert")
    before = backbone.model.config._attn_implementation
    real = Unpadded._padded
    monkeypatch.setattr(Unpadded, "_padded", lambda *args, **options: real(*args, **options) + 0.1)
    with pytest.raises(DptdrError, match="packed and padded vectors differ by"):
        Unpadded(backbone)
    assert backbone.model.config._attn_implementation == before
    assert not any(isinstance(module, OrderedLinear) for module in backbone.model.modules())
