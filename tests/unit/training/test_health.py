import numpy as np
import pytest
import torch

from dptdr.config.methods import DeepPromptConfig
from helpers.tiny import tiny_backbone
from helpers.training import made_method

TEXTS = ["red car in the garden", "old house", "who does paint the boat in the river"]


def expected_mass(method):
    """Shares from one text at a time, so that nothing is padded, by plain softmax over columns."""
    backbone = method.backbone
    prompt = method.module["shared"].attention()
    sums, tokens_seen = np.zeros((3, 4)), 0
    for text in TEXTS:
        tokens = backbone.pad(backbone.tokenize([text], side="query"))

        def observe(layer, query, key, value, mask, scale):
            keys = prompt.keys[layer]
            columns = torch.cat([keys, key], dim=2)
            scores = query @ columns.transpose(-1, -2) * scale
            share = scores.softmax(dim=-1)[..., : keys.shape[2]].sum(dim=-1)
            sums[layer] += share.sum(dim=(0, 2)).detach().numpy()

        with torch.no_grad():
            method.vectors(tokens, side="query", observer=observe)
        tokens_seen += tokens.ids.shape[1]
    return sums / tokens_seen


def test_attention_mass_is_the_softmax_share_of_the_prompts_columns():
    from dptdr.training.health import prompt_shares

    method = made_method("deep-prompt", config=DeepPromptConfig(prompt_length=3))
    found = prompt_shares(method, TEXTS, side="query")[0]
    assert found == pytest.approx(expected_mass(method), rel=1e-4)
    assert method.module.training


def test_there_is_no_mass_without_a_deep_prompt_or_a_view_into_attention():
    from dptdr.training.health import prompt_shares

    assert prompt_shares(made_method("lora"), TEXTS, side="query") == (None, None)
    query_only = made_method("deep-prompt", config=DeepPromptConfig(sharing="query-only"))
    assert prompt_shares(query_only, TEXTS, side="passage") == (None, None)
    intercepted = made_method("deep-prompt", backbone=tiny_backbone("mpnet"))
    assert prompt_shares(intercepted, TEXTS, side="query")[0] is None


def test_grouped_query_heads_and_causal_masks_are_followed():
    from dptdr.training.health import prompt_shares

    method = made_method("deep-prompt", backbone=tiny_backbone("qwen3", pool="last"))
    alone = [prompt_shares(method, [text], side="query")[0] for text in TEXTS]
    lengths = [len(row) for row in method.backbone.tokenize(TEXTS, side="query")]
    expected = sum(n * mass for n, mass in zip(lengths, alone, strict=True)) / sum(lengths)
    assert prompt_shares(method, TEXTS, side="query")[0] == pytest.approx(expected, rel=1e-4)


def test_feed_forward_share_is_that_of_the_lengths_of_vectors():
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model.methods import DeepPromptMethod
    from dptdr.training.health import prompt_health

    backbone = tiny_backbone("bert")
    method = DeepPromptMethod(backbone, DeepPromptConfig(prompt_length=0, ffn_length=3))
    start = prompt_health(method, queries=TEXTS, passages=TEXTS, max_tokens=None)
    assert start == {"feed_forward_share": {"query": [0.0] * 3, "passage": [0.0] * 3}}

    prompt = method.prompt("query")
    with torch.no_grad():
        prompt.ffn_values.normal_(generator=torch.Generator().manual_seed(0))
    seen, own = [], []
    layer = backbone.model.encoder.layer[0]
    layer.intermediate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dense = layer.output.dense
    for text in TEXTS:
        ids = backbone.tokenize([text], side="query")
        with torch.no_grad():
            method.vectors(backbone.pad(ids), side="query")
            states = seen[-1][0]
            keys, biases = prompt.ffn_keys[0], prompt.ffn_biases[0]
            added = torch.nn.functional.gelu(states @ keys.T + biases) @ prompt.ffn_values[0]
            plain = torch.nn.functional.linear(layer.intermediate(states), dense.weight, dense.bias)
            lengths = added.norm(dim=-1), plain.norm(dim=-1)
        own.append(lengths[0] / (lengths[0] + lengths[1]))
    found = prompt_health(method, queries=TEXTS, passages=[], max_tokens=None)
    shares = found["feed_forward_share"]["query"]
    assert shares[0] == pytest.approx(float(torch.cat(own).mean()), rel=1e-4)
