"""Laws of prompted encoding, on tiny random encoders."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptdr.config.methods import DeepPromptConfig
from dptdr.model import Encoder, Injection, MethodFactory
from dptdr.model.encoder import length_sorted_batches
from helpers.prompts import random_attention, states
from helpers.tiny import ARCHITECTURES, WORDS, tiny_backbone, tiny_model, token_batch

SOME = ["bert", "albert", "modernbert", "qwen3", "mpnet", "deberta-v2"]
texts_of_words = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=0, max_size=14).map(" ".join), min_size=1, max_size=6
)
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def padded(backbone, texts, *, extra=0):
    tokens = backbone.pad(backbone.tokenize(texts, side="query"))
    if not extra:
        return tokens
    width = (tokens.ids.shape[0], extra)
    ids = torch.cat([tokens.ids, torch.full(width, 7)], dim=1)
    mask = torch.cat([tokens.mask, torch.zeros(width, dtype=torch.long)], dim=1)
    return type(tokens)(ids, mask)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_prompt_is_the_backbone(architecture):
    """Up to the order of sums, hence in double precision."""
    injection = Injection(tiny_model(architecture).double())
    ids, mask = token_batch((9, 4, 12), padding=injection.model.config.pad_token_id or 0)
    segment = random_attention(
        injection.geometry,
        texts=3,
        visible=torch.zeros(3, 4, dtype=torch.bool),
        dtype=torch.float64,
    )
    bare = states(injection, ids, mask)
    prompted = states(injection, ids, mask, segment)
    torch.testing.assert_close(prompted[mask > 0], bare[mask > 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_feed_forward_rows_start_exactly_as_the_backbone_and_learn(frozen_tiny, architecture):
    backbone = frozen_tiny(architecture)
    config = DeepPromptConfig(prompt_length=0, ffn_length=3)
    method = MethodFactory().build("deep-prompt", backbone, config, seed=0)
    tokens = padded(backbone, ["red car", "the old house of the river stone", "cat"])
    bare = backbone.vectors(tokens)
    prompted = method.vectors(tokens, side="query")
    assert torch.equal(prompted, bare)
    (prompted * torch.arange(32)).sum().backward()
    values = method.trained()["shared.ffn_values"]
    assert values.grad.flatten(1).abs().amax(dim=1).min() > 0


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "albert", "modernbert", "mpnet"])
def test_frozen_weights_are_byte_identical_after_training(architecture):
    backbone = tiny_backbone(architecture)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    fingerprint = backbone.fingerprint
    method = MethodFactory().build(
        "deep-prompt",
        backbone,
        DeepPromptConfig(prompt_length=3, initialisation="random", random_scale=1.0),
        seed=0,
    )
    start = method.state()["shared"]
    assert all(not p.requires_grad for p in backbone.model.parameters())
    optimiser = torch.optim.AdamW(method.trained().values(), lr=0.1)
    tokens = padded(backbone, ["red car", "old house"])
    for _ in range(3):
        optimiser.zero_grad()
        method.vectors(tokens, side="query").pow(2).sum().backward()
        optimiser.step()
    assert (method.state()["shared"] - start).flatten(1).abs().amax(dim=1).min() > 1e-3
    for name, tensor in backbone.model.state_dict().items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name
    backbone.forget_fingerprint()
    assert backbone.fingerprint == fingerprint


@few
@given(texts=texts_of_words, extra=st.integers(1, 9))
@pytest.mark.parametrize("architecture", SOME)
def test_padding_changes_nothing(frozen_tiny, architecture, texts, extra):
    backbone = frozen_tiny(architecture)
    segment = random_attention(backbone.geometry)
    exact = backbone.vectors(padded(backbone, texts), attention=segment)
    wider = backbone.vectors(padded(backbone, texts, extra=extra), attention=segment)
    torch.testing.assert_close(wider, exact, rtol=1e-5, atol=1e-5)


@few
@given(texts=texts_of_words)
@pytest.mark.parametrize("architecture", SOME)
def test_batch_is_each_text_alone(frozen_tiny, architecture, texts):
    encoder = Encoder(frozen_tiny(architecture), token_budget=40)
    together = encoder.encode_queries(texts)
    for row, text in zip(together, texts, strict=True):
        alone = encoder.encode_queries([text])[0]
        torch.testing.assert_close(
            torch.from_numpy(row), torch.from_numpy(alone), rtol=1e-5, atol=1e-5
        )


@few
@given(seed=st.integers(0, 2**31), order=st.permutations([0, 1, 2, 3]))
def test_order_of_prompt_rows_does_not_matter(frozen_tiny, seed, order):
    backbone = frozen_tiny("bert")
    tokens = padded(backbone, ["red car", "the old house"])
    segment = random_attention(backbone.geometry, seed=seed)
    shuffled = segment._replace(
        keys=segment.keys[..., order, :], values=segment.values[..., order, :]
    )
    torch.testing.assert_close(
        backbone.vectors(tokens, attention=shuffled),
        backbone.vectors(tokens, attention=segment),
        rtol=1e-5,
        atol=1e-5,
    )


@given(
    lengths=st.lists(st.integers(0, 70), max_size=40),
    budget=st.integers(1, 200),
    most=st.integers(1, 9),
)
def test_batches_hold_each_text_once_within_the_budget(lengths, budget, most):
    batches = list(length_sorted_batches(lengths, token_budget=budget, max_texts=most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or longest * len(batch) <= budget
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)
