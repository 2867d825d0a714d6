"""Prompted forward passes of every architecture against attention written out by hand."""

import pytest
import torch

from dptdr.model import Injection
from helpers.prompts import as_rows, lengths_visible, random_attention, states
from helpers.reference import reference_states
from helpers.tiny import ARCHITECTURES, INTERCEPTED, REGISTRY, tiny_model, token_batch

LENGTHS = (9, 4, 12)


def exactness(architecture):
    """DeBERTa takes the square root in its scale in single precision, whatever its weights."""
    return 2e-6 if architecture.startswith("deberta") else 1e-9


def padding_of(model):
    return model.config.pad_token_id or 0


def rows_for(geometry, *, shared=False, dtype=torch.float64):
    """Rows that all texts share, or rows and a length of each text."""
    if shared:
        return random_attention(geometry, prompt=3, seed=1, dtype=dtype)
    visible = lengths_visible((5, 1, 3), longest=5)
    return random_attention(geometry, prompt=5, texts=3, seed=2, visible=visible, dtype=dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reference_without_prompt_is_the_model_itself(architecture):
    model = tiny_model(architecture).double()
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    own = model(input_ids=ids, attention_mask=mask).last_hidden_state
    by_hand = reference_states(model, ids, mask)
    near = exactness(architecture)
    torch.testing.assert_close(by_hand[mask > 0], own[mask > 0], rtol=near, atol=near)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompted_output_in_double_precision_is_the_hand_written_one(architecture, shared):
    model = tiny_model(architecture).double()
    injection = Injection(model)
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    rows = rows_for(injection.geometry, shared=shared)
    expected = reference_states(model, ids, mask, as_rows(rows))
    got = states(injection, ids, mask, rows)
    bare = states(injection, ids, mask)
    assert (expected - bare)[mask > 0].abs().max() > 0.1, "the prompt must matter here"
    near = exactness(architecture)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], rtol=near, atol=near)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompted_output_in_single_precision_is_the_hand_written_one(architecture):
    model = tiny_model(architecture)
    injection = Injection(model)
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    rows = rows_for(injection.geometry, dtype=torch.float32)
    expected = reference_states(model, ids, mask, as_rows(rows))
    got = states(injection, ids, mask, rows)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompt_gradients_are_those_of_the_hand_written_attention(architecture):
    model = tiny_model(architecture).double()
    injection = Injection(model)
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    start = rows_for(injection.geometry)
    weights = (
        torch.randn(3, 12, 32, dtype=torch.float64, generator=torch.Generator()) * mask[:, :, None]
    )

    def gradients(compute):
        keys, values = start.keys.clone().requires_grad_(), start.values.clone().requires_grad_()
        loss = (compute(start._replace(keys=keys, values=values)) * weights).sum()
        return torch.autograd.grad(loss, (keys, values))

    expected = gradients(lambda rows: reference_states(model, ids, mask, as_rows(rows)))
    got = gradients(lambda rows: states(injection, ids, mask, rows))
    for one, other in zip(got, expected, strict=True):
        near = 10 * exactness(architecture)
        torch.testing.assert_close(one, other, rtol=near, atol=near)
        assert one.flatten(1).abs().amax(dim=1).min() > 0, "every layer gets a gradient"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_with_different_prompts_in_one_batch_equal_each_alone(architecture):
    model = tiny_model(architecture)
    injection = Injection(model)
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    prompt_lengths = (5, 0, 2)
    together = random_attention(
        injection.geometry,
        prompt=5,
        texts=3,
        visible=lengths_visible(prompt_lengths, longest=5),
    )
    batch = states(injection, ids, mask, together)
    for row, (tokens, prompt) in enumerate(zip(LENGTHS, prompt_lengths, strict=True)):
        own = together._replace(
            keys=together.keys[:, row : row + 1, :, :prompt],
            values=together.values[:, row : row + 1, :, :prompt],
            visible=None,
        )
        alone = states(
            injection,
            ids[row : row + 1, :tokens],
            mask[row : row + 1, :tokens],
            own if prompt else None,
        )
        torch.testing.assert_close(batch[row, :tokens], alone[0], rtol=1e-5, atol=1e-5)


def test_every_registry_architecture_takes_the_registry_and_no_other_does():
    routes = {name: Injection(tiny_model(name)).route for name in ARCHITECTURES}
    assert routes == dict.fromkeys(REGISTRY, "registry") | dict.fromkeys(
        INTERCEPTED, "interception"
    )


def test_modernbert_prompt_is_seen_from_every_token_of_a_local_window():
    model = tiny_model("modernbert")
    injection = Injection(model)
    ids, mask = token_batch((40,))
    segment = random_attention(injection.geometry)
    local = [kind == "sliding_attention" for kind in model.config.layer_types]
    assert any(local), "the tiny model must have a local layer"
    layer = local.index(True)
    keys = segment.keys.clone()
    keys[layer] += 1.0
    moved = states(injection, ids, mask, segment._replace(keys=keys))
    before = states(injection, ids, mask, segment)
    assert ((moved - before).abs().amax(dim=-1) > 1e-4).all()


def test_modernbert_prompt_keys_are_not_rotated():
    """Moving all positions rotates queries and token keys alike; the prompt then meets others."""
    model = tiny_model("modernbert")
    injection = Injection(model)
    ids, mask = token_batch((10,))
    segment = random_attention(injection.geometry)
    positions = torch.arange(10)[None]

    def at(shift, rows):
        from dptdr.model import PromptCall

        return injection(
            PromptCall(rows),
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions + shift,
        ).last_hidden_state

    torch.testing.assert_close(at(7, None), at(0, None), rtol=1e-4, atol=1e-4)
    assert (at(7, segment) - at(0, segment)).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["bert", "t5", "qwen3", "mpnet", "deberta-v2"])
def test_bfloat16_weights_take_prompts_kept_in_float32(architecture):
    model = tiny_model(architecture)
    exact = Injection(model)
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    segment = random_attention(exact.geometry)
    expected = states(exact, ids, mask, segment)
    rounded = states(Injection(tiny_model(architecture).bfloat16()), ids, mask, segment)
    assert rounded.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(rounded.float()[mask > 0], expected[mask > 0], dim=-1)
    assert cosine.min() > 0.99
