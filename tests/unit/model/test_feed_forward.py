"""Feed-forward rows are bound to every architecture, and add what a hand-written layer adds."""

import contextlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BundleError, ConfigError, UnsupportedBackbone
from dptdr.model import Backbone, Tokens
from dptdr.model.methods import DeepPromptMethod, default_ffn_length
from dptdr.model.prompt_rows import FeedForwardRows
from helpers.tiny import ARCHITECTURES, HIDDEN, tiny_backbone, token_batch

BERT_LIKE = (r"intermediate\.dense$", r"(?<!attention\.)output\.dense$", functional.gelu)
GATED = (r"mlp\.gate_proj$", r"mlp\.down_proj$", functional.silu)


def gelu_new(x):
    return functional.gelu(x, approximate="tanh")


# By hand, from each architecture's source: what reads the state, what the addition follows.
BERTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "mpnet", "deberta")
BERTS += ("deberta-v2", "deberta-v3", "rembert", "roformer", "megatron-bert")
BY_HAND = dict.fromkeys(BERTS, BERT_LIKE) | {
    "distilbert": (r"ffn\.lin1$", r"ffn\.lin2$", functional.gelu),
    "albert": (r"\.ffn$", r"ffn_output$", gelu_new),
    "albert-groups": (r"\.ffn$", r"ffn_output$", gelu_new),
    "albert-two-groups": (r"\.ffn$", r"ffn_output$", gelu_new),
    "modernbert": (r"mlp\.Wi$", r"mlp\.Wo$", functional.gelu),
    "nomic-bert": GATED,
    "gte": (GATED[0], GATED[1], functional.gelu),
    "jina-v3": (r"mlp\.fc1$", r"mlp\.fc2$", functional.gelu),
    "t5": (r"DenseReluDense\.wi$", r"DenseReluDense\.wo$", functional.relu),
    "qwen3": GATED,
    "llama": GATED,
    "mistral-window": GATED,
}


def random_rows(backbone, *, rows=3, texts=1, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    layers = backbone.geometry.layers

    def draw(*shape):
        return torch.randn(shape, generator=generator) * scale

    return FeedForwardRows(
        draw(layers, texts, rows, HIDDEN),
        draw(layers, texts, rows),
        draw(layers, texts, rows, HIDDEN),
    )


@contextlib.contextmanager
def by_hand(model, architecture, rows):
    """Widen every feed-forward layer as its source says, counting its calls."""
    up_name, down_name, activation = BY_HAND[architecture]
    seen, counts = [], {"up": 0, "down": 0}
    handles = []

    def keep(module, inputs):
        seen.append(inputs[0])

    def add(module, inputs, output):
        layer = counts["down"]
        counts["down"] += 1
        keys, biases, values = (x[layer, 0] for x in rows)
        return output + activation(seen[layer] @ keys.T + biases) @ values

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.search(up_name, name):
            handles.append(module.register_forward_pre_hook(keep))
        if isinstance(module, nn.Linear) and re.search(down_name, name):
            handles.append(module.register_forward_hook(add))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_add_what_the_layer_written_by_hand_adds(architecture):
    plain, backbone = tiny_backbone(architecture), tiny_backbone(architecture)
    tokens = Tokens(*token_batch())
    rows = random_rows(backbone)
    made = backbone.vectors(tokens, feed_forward=rows)
    with by_hand(plain.model, architecture, rows) as counts:
        expected = plain.vectors(tokens)
    assert counts["down"] == backbone.geometry.layers
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made, backbone.vectors(tokens), atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_values_are_the_base_encoder_to_the_bit(architecture):
    backbone = tiny_backbone(architecture)
    tokens = Tokens(*token_batch())
    rows = random_rows(backbone)
    zero = rows._replace(values=torch.zeros_like(rows.values))
    assert torch.equal(backbone.vectors(tokens, feed_forward=zero), backbone.vectors(tokens))


@pytest.mark.parametrize("architecture", ["bert", "albert", "nomic-bert", "deberta-v2", "t5"])
def test_checkpointing_gives_the_same_gradients(architecture):
    gradients = []
    for recompute in (False, True):
        backbone = tiny_backbone(architecture)
        if recompute:
            backbone.injection.enable_checkpointing()
        rows = FeedForwardRows(*(x.requires_grad_() for x in random_rows(backbone)))
        backbone.vectors(Tokens(*token_batch()), feed_forward=rows).square().sum().backward()
        gradients.append([x.grad for x in rows])
    for one, other in zip(*gradients, strict=True):
        assert all(bool(layer.any()) for layer in one)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_rows_of_each_text_equal_each_text_alone():
    backbone = tiny_backbone("bert")
    ids, mask = token_batch()
    rows = random_rows(backbone, texts=3)
    together = backbone.vectors(Tokens(ids, mask), feed_forward=rows)
    for text, length in enumerate(mask.sum(dim=1).tolist()):
        own = FeedForwardRows(*(x[:, text : text + 1] for x in rows))
        one = Tokens(ids[text : text + 1, :length], mask[text : text + 1, :length])
        alone = backbone.vectors(one, feed_forward=own)[0]
        torch.testing.assert_close(together[text], alone, rtol=1e-5, atol=1e-5)


def test_start_is_the_layers_own_units_and_the_encoders_vectors():
    backbone = tiny_backbone("bert")
    method = DeepPromptMethod(backbone, DeepPromptConfig(prompt_length=0, ffn_length=5), seed=1)
    tokens = Tokens(*token_batch())
    assert torch.equal(method.vectors(tokens, side="query"), backbone.vectors(tokens))
    for number, layer in enumerate(backbone.model.encoder.layer):
        own = layer.intermediate.dense
        units = torch.cat([own.weight, own.bias[:, None]], dim=1)
        prompt = method.prompt("query")
        started = torch.cat([prompt.ffn_keys[number], prompt.ffn_biases[number, :, None]], dim=1)
        assert all((units == row).all(dim=1).any() for row in started)
    assert set(method.trained()) == {f"shared.ffn_{n}" for n in ("keys", "biases", "values")}


def test_a_copied_encoder_adds_rows_once():
    import copy

    backbone = tiny_backbone("bert")
    rows, tokens = random_rows(backbone), Tokens(*token_batch())
    expected = backbone.vectors(tokens, feed_forward=rows)
    again = Backbone(
        copy.deepcopy(backbone.model), backbone.tokenizer, name="copy", pooling=backbone.pooling
    )
    assert torch.equal(again.vectors(tokens, feed_forward=rows), expected)


class Experts(nn.Module):
    """A router that sends each token to one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 2)
        self.up = nn.ModuleList(nn.Linear(HIDDEN, 48) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(48, HIDDEN) for _ in range(2))

    def forward(self, states):
        chosen = self.router(states).argmax(dim=-1)
        output = torch.zeros_like(states)
        for expert in range(2):
            own = chosen == expert
            output[own] = self.down[expert](functional.gelu(self.up[expert](states[own])))
        return output


def test_mixture_of_experts_is_refused_and_attention_rows_still_work():
    backbone = tiny_backbone("jina-v3")
    next(m for n, m in backbone.model.named_modules() if n.endswith("layers.1")).mlp = Experts()
    with pytest.raises(UnsupportedBackbone, match="--ffn-length 0"):
        backbone.injection.feed_forward_layers()
    config = DeepPromptConfig(prompt_length=2, ffn_length=0)
    vectors = DeepPromptMethod(backbone, config).vectors(Tokens(*token_batch()), side="query")
    assert not torch.allclose(vectors, backbone.vectors(Tokens(*token_batch())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ffn_length": -1}, "ffn_length: expected 0 to 4096 rows, got -1"),
        ({"ffn_length": 10**6}, "ffn_length: expected 0 to 4096 rows, got 1000000"),
        ({"prompt_length": 0, "ffn_length": 0}, "expected at least one above 0, got 0 and 0"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(tiny_bert, settings, message):
    with pytest.raises(ConfigError, match=message):
        DeepPromptMethod(tiny_bert, DeepPromptConfig(**settings))


def test_rows_of_another_shape_are_refused(tiny_bert):
    method = DeepPromptMethod(tiny_bert, DeepPromptConfig(prompt_length=2, ffn_length=3))
    state = method.state()
    wide = dict(state, **{"shared.ffn_keys": torch.zeros(3, 3, HIDDEN + 1)})
    with pytest.raises(BundleError, match="expected feed-forward keys of shape"):
        method.load(wide)
    del state["shared.ffn_biases"]
    with pytest.raises(BundleError, match=r"lack \['biases'\]"):
        method.load(state)


def test_another_tasks_rows_must_have_the_same_length(tiny_bert):
    start = DeepPromptMethod(tiny_bert, DeepPromptConfig(prompt_length=2, ffn_length=3)).state()
    same = DeepPromptConfig(prompt_length=2, ffn_length=3, sharing="untied")
    made = DeepPromptMethod(tiny_bert, same, rows=start).state()
    assert torch.equal(made["passage.ffn_keys"], start["shared.ffn_keys"])
    unsaid = DeepPromptConfig(prompt_length=2)
    assert DeepPromptMethod(tiny_bert, unsaid, rows=start).config.ffn_length == 3
    with pytest.raises(ConfigError, match="ffn_length: expected 3, the length of the initial"):
        DeepPromptMethod(tiny_bert, DeepPromptConfig(prompt_length=2, ffn_length=4), rows=start)


def test_default_length_keeps_within_two_percent(minilm):
    config = DeepPromptConfig()
    assert default_ffn_length(minilm, config, sides=1) == 80
    for sharing in ("tied", "untied", "query-only"):
        method = DeepPromptMethod(minilm, DeepPromptConfig(sharing=sharing))
        trained = sum(p.numel() for p in method.trained().values())
        assert 0.01 < trained / minilm.parameter_count <= 0.02


@pytest.mark.parametrize("architecture", ["bert", "albert", "modernbert"])
def test_dropout_is_drawn_once_for_a_step(architecture):
    backbone = tiny_backbone(architecture)
    config = DeepPromptConfig(prompt_length=0, ffn_length=8, dropout=0.5)
    prompt = DeepPromptMethod(backbone, config).prompt("query")
    prompt.train()
    prompt.draw_dropout(3)
    once, again = prompt.feed_forward(), prompt.feed_forward()
    assert torch.equal(once.keys, again.keys)
    assert 0.3 < float((once.keys == 0).float().mean()) < 0.7
    prompt.eval()
    assert not (prompt.feed_forward().keys == 0).any()
