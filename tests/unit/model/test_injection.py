"""Binding to a model: checkpointing, compiling, and refusing what a prompt cannot reach."""

import copy

import pytest
import torch
import transformers
from torch import nn

from dptdr.errors import UnsupportedBackbone
from dptdr.model import Geometry, Injection, PromptCall
from helpers.prompts import random_attention, states
from helpers.tiny import ARCHITECTURES, HEADS, HIDDEN, VOCAB_SIZE, tiny_model, token_batch

LENGTHS = (9, 4, 12)
SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}


def padding_of(model):
    return model.config.pad_token_id or 0


def query_and_passage_pass(injection):
    """Forward queries, forward passages with another prompt, then one backward through both."""
    segments = [
        random_attention(injection.geometry, seed=1, prompt=3),
        random_attention(injection.geometry, seed=2, prompt=5, texts=3),
    ]
    rows = [t.requires_grad_() for s in segments for t in (s.keys, s.values)]
    padding = padding_of(injection.model)
    outputs = []
    for number, segment in enumerate(segments):
        ids, mask = token_batch(LENGTHS, seed=number, padding=padding)
        outputs.append(states(injection, ids, mask, segment) * mask[:, :, None])
    loss = (outputs[0].sum(dim=1) * outputs[1].sum(dim=1)).sum()
    return [output.detach() for output in outputs], torch.autograd.grad(loss, rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpointing_changes_neither_outputs_nor_gradients(architecture):
    model = tiny_model(architecture).requires_grad_(requires_grad=False)
    injection = Injection(model)
    outputs, gradients = query_and_passage_pass(injection)
    injection.enable_checkpointing()
    again_outputs, again_gradients = query_and_passage_pass(injection)
    for one, other in zip(outputs, again_outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(gradients, again_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "albert", "mpnet", "modernbert"])
def test_checkpointing_runs_each_block_again_in_backward(architecture):
    model = tiny_model(architecture).requires_grad_(requires_grad=False)
    injection = Injection(model)
    injection.enable_checkpointing()
    injection.enable_checkpointing()
    runs = []
    inner = [
        m for m in model.modules() if type(m).__name__.endswith(("Attention", "AttentionHead"))
    ]
    inner[-1].register_forward_hook(lambda *_: runs.append("run"))
    segment = random_attention(injection.geometry)
    segment.keys.requires_grad_()
    ids, mask = token_batch(LENGTHS, padding=padding_of(model))
    output = states(injection, ids, mask, segment)
    forward = len(runs)
    output.sum().backward()
    assert len(runs) == 2 * forward


def test_a_copy_of_a_checkpointed_model_runs_its_own_weights():
    model = tiny_model().requires_grad_(requires_grad=False)
    injection = Injection(model)
    injection.enable_checkpointing()
    ids, mask = token_batch(LENGTHS)
    before = states(injection, ids, mask)
    twin = Injection(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert not torch.equal(states(twin, ids, mask), before)
    torch.testing.assert_close(states(injection, ids, mask), before, rtol=0, atol=0)


def test_checkpointing_without_a_list_of_blocks_is_refused(tiny_bert):
    injection = copy.copy(tiny_bert.injection)
    injection.model = nn.Linear(2, 2)
    with pytest.raises(UnsupportedBackbone, match="needs a list of blocks"):
        injection.enable_checkpointing()


def refused(model):
    with pytest.raises(UnsupportedBackbone) as caught:
        Injection(model.eval())
    return str(caught.value)


UNREACHABLE = {
    "xlnet": lambda: transformers.XLNetConfig(
        vocab_size=VOCAB_SIZE, d_model=HIDDEN, n_layer=2, n_head=HEADS, d_inner=48
    ),
    "funnel": lambda: transformers.FunnelConfig(
        vocab_size=VOCAB_SIZE,
        block_sizes=[1, 1],
        block_repeats=[1, 1],
        num_decoder_layers=1,
        d_model=HIDDEN,
        n_head=HEADS,
        d_head=8,
        d_inner=48,
    ),
    "reformer": lambda: transformers.ReformerConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        attention_head_size=8,
        attn_layers=["local", "lsh"],
        feed_forward_size=48,
        axial_pos_shape=(8, 8),
        axial_pos_embds_dim=(16, 16),
        max_position_embeddings=64,
    ),
    "fnet": lambda: transformers.FNetConfig(
        vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, num_hidden_layers=2, intermediate_size=48
    ),
    "longformer": lambda: transformers.LongformerConfig(**SMALL, attention_window=4),
    "canine": lambda: transformers.CanineConfig(
        **{k: v for k, v in SMALL.items() if k != "vocab_size"}
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, num_hidden_layers=2
    ),
}


@pytest.mark.parametrize("architecture", UNREACHABLE)
def test_architecture_without_reachable_attention_is_refused(architecture):
    config = UNREACHABLE[architecture]()
    model = getattr(transformers, type(config).__name__.replace("Config", "Model"))(config)
    message = refused(model)
    assert type(model).__name__ in message
    assert "deep prompts do not support this architecture" in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (transformers.BigBirdConfig(**SMALL), "block-sparse attention"),
        (
            transformers.DebertaConfig(
                **SMALL, relative_attention=True, pos_att_type=["c2p"], talking_head=True
            ),
            "talking heads",
        ),
        (
            transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
            "'softcap'",
        ),
        (transformers.ConvBertConfig(**SMALL, embedding_size=HIDDEN), "could not be traced"),
        (
            transformers.BloomConfig(
                vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, n_layer=2, n_head=HEADS
            ),
            "could not be traced",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_attention_of_a_kind_that_prompts_do_not_fit_is_named(config, said):
    assert said in refused(transformers.AutoModel.from_config(config))


def test_plain_module_is_refused():
    assert "expected a transformers encoder" in refused(nn.Linear(2, 2))


class HalfDeaf(transformers.BertModel):
    """Its second layer does not attend: a prompt cannot reach it."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder.layer[1].attention = Deaf()


class Deaf(nn.Module):
    def forward(self, hidden_states, *_, **__):
        return hidden_states, None


def test_model_that_skips_attention_in_one_layer_is_refused():
    message = refused(HalfDeaf(transformers.BertConfig(**SMALL)))
    assert "expected one attention call for each of 2 layers" in message
    assert "got 1 calls" in message


class Forgetful(transformers.BertModel):
    """Attends in every layer and throws the result of the second away."""

    def __init__(self, config):
        super().__init__(config)
        output = self.encoder.layer[1].attention.output
        output.forward = lambda states, residual: output.LayerNorm(residual + 0 * states)


def test_model_that_drops_the_attention_of_one_layer_is_refused():
    message = refused(Forgetful(transformers.BertConfig(**SMALL)))
    assert "the prompt's keys in layer 1 get no gradient" in message


class Constant(transformers.BertModel):
    """Its output does not depend on anything."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.last_hidden_state = torch.zeros_like(output.last_hidden_state)
        return output


def test_model_whose_output_ignores_the_prompt_is_refused():
    assert "did not change the output" in refused(Constant(transformers.BertConfig(**SMALL)))


class Raising(transformers.BertModel):
    def forward(self, input_ids=None, **inputs):
        raise RuntimeError("expects pixels")


def test_model_that_cannot_run_on_tokens_is_refused_with_its_reason():
    message = refused(Raising(transformers.BertConfig(**SMALL)))
    assert "RuntimeError: expects pixels" in message


def test_model_without_a_stated_number_of_layers_is_refused():
    model = tiny_model()
    model.config.num_hidden_layers = 0
    assert "expected the number of layers" in refused(model)


class Fickle(transformers.MPNetModel):
    """Mixes long texts without attention, as some architectures take another path for them."""

    def forward(self, input_ids=None, **inputs):
        if input_ids.shape[1] <= 8:
            return super().forward(input_ids=input_ids, **inputs)
        return transformers.modeling_outputs.BaseModelOutput(self.embeddings(input_ids=input_ids))


def test_attention_that_changes_with_the_length_of_a_text_is_an_error_not_a_bare_vector():
    injection = Injection(Fickle(transformers.MPNetConfig(**SMALL)).eval())
    segment = random_attention(injection.geometry)
    states(injection, *token_batch((8, 5)), segment)
    with pytest.raises(UnsupportedBackbone, match="reached 0 of 2 layers in this forward pass"):
        states(injection, *token_batch((9, 5)), segment)


def test_geometry_states_key_value_heads_of_grouped_attention():
    assert Injection(tiny_model("qwen3")).geometry == Geometry(layers=2, heads=2, head_dim=16)


def test_albert_layers_are_counted_with_its_inner_groups():
    assert Injection(tiny_model("albert")).geometry.layers == 3
    assert Injection(tiny_model("albert-groups")).geometry.layers == 6
    assert Injection(tiny_model("albert-two-groups")).geometry.layers == 4


@pytest.mark.parametrize("architecture", ["bert", "albert", "mpnet"])
def test_observer_sees_each_layer_once_with_and_without_prompts(architecture):
    injection = Injection(tiny_model(architecture))
    geometry = injection.geometry
    ids, mask = token_batch(LENGTHS, padding=padding_of(injection.model))
    for rows in (None, random_attention(geometry)):
        seen = []

        def observe(layer, query, key, value, mask, scale, seen=seen):
            del query, mask
            assert scale == pytest.approx(geometry.head_dim**-0.5)
            seen.append((layer, tuple(key.shape), tuple(value.shape)))

        call = PromptCall(rows, observer=observe)
        injection(call, input_ids=ids, attention_mask=mask)
        shape = (3, geometry.heads, 12, geometry.head_dim)
        assert seen == [(layer, shape, shape) for layer in range(geometry.layers)]
