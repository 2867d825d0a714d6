"""Prefix attention written out by hand, to hold the package's attention against.

Nothing here uses the package. Architectures that ask the registry get a function of explicit sums
and exponentials, with masks made by hand; MPNet, DeBERTa and their kin get their self-attention's
forward replaced by one written out here.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

MASKED = -1e30


@dataclass
class Rows:
    """Prompt rows [layers, texts, kv_heads, prompt, head_dim], and which of them each text sees."""

    keys: Tensor
    values: Tensor
    visible: Tensor | None = None


@dataclass
class _Pass:
    """What the forward pass under way attends to besides its tokens."""

    prompts: list[Rows] = field(default_factory=list)
    token_mask: Tensor | None = None
    causal: bool = False
    layer: int = 0


_PASS = _Pass()


def _exponentials(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Unnormalised weights relative to the row's maximum, and that maximum."""
    scores = torch.where(allowed, scores, torch.full_like(scores, MASKED))
    top = scores.max(dim=-1, keepdim=True).values
    return torch.exp(scores - top) * allowed, top


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    token_scores: Tensor,
    allowed: Tensor,
    scale: float,
) -> Tensor:
    """One layer's attention over the tokens and the prompts of the pass under way.

    ``token_scores`` and ``allowed`` are [texts, heads, tokens, tokens]; the scores hold scale and
    biases already.
    """
    del key
    layer = _PASS.layer
    _PASS.layer += 1
    heads = query.shape[1]
    parts: list[tuple[Tensor, Tensor, Tensor]] = [
        (token_scores, allowed.expand_as(token_scores), value)
    ]
    for rows in _PASS.prompts:
        group = heads // rows.keys.shape[2]
        # Query head h reads key/value head h // group.
        source = torch.tensor([head // group for head in range(heads)])
        keys = rows.keys[layer][:, source]
        values = rows.values[layer][:, source]
        texts = query.shape[0]
        keys = torch.cat([keys] * texts) if keys.shape[0] == 1 else keys
        values = torch.cat([values] * texts) if values.shape[0] == 1 else values
        scores = torch.einsum("bhqd,bhpd->bhqp", query, keys) * scale
        seen = torch.ones(texts, keys.shape[2], dtype=torch.bool)
        if rows.visible is not None:
            seen = rows.visible
        parts.append((scores, seen[:, None, None, :].expand_as(scores), values))
    return _weighted(parts)


def _weighted(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    scores = torch.cat([s for s, _, _ in parts], dim=-1)
    allowed = torch.cat([a for _, a, _ in parts], dim=-1)
    weights, _ = _exponentials(scores, allowed)
    total = weights.sum(dim=-1, keepdim=True)
    total = torch.where(total == 0, torch.ones_like(total), total)
    output, start = 0, 0
    for part_scores, _, values in parts:
        stop = start + part_scores.shape[-1]
        output = output + torch.einsum("bhqk,bhkd->bhqd", weights[..., start:stop], values)
        start = stop
    return output / total


def _allowed(tokens: int, *, window: int | None) -> Tensor:
    """[texts, 1, tokens, tokens]: padding, causality and local windows, by hand."""
    mask = _PASS.token_mask
    assert mask is not None
    allowed = torch.zeros(mask.shape[0], 1, tokens, tokens, dtype=torch.bool)
    for row in range(mask.shape[0]):
        for at in range(tokens):
            for to in range(tokens):
                near = window is None or abs(at - to) <= window
                past = not _PASS.causal or to <= at
                allowed[row, 0, at, to] = bool(mask[row, to]) and near and past
    return allowed


def _registry_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    group = query.shape[1] // key.shape[1]
    source = torch.tensor([head // group for head in range(query.shape[1])])
    key, value = key[:, source], value[:, source]
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    allowed = _allowed(query.shape[2], window=_window(module))
    output = attend(query, key, value, token_scores=scores, allowed=allowed, scale=scaling)
    return output.transpose(1, 2), None


def _window(module: nn.Module) -> int | None:
    """How far a token sees, in tokens."""
    name = type(module).__name__
    if name == "ModernBertAttention" and module.sliding_window is not None:
        return int(module.config.local_attention) // 2
    if name == "MistralAttention":
        # Mistral counts the token itself among its window.
        return int(module.config.sliding_window) - 1
    return None


def _heads(states: Tensor, heads: int) -> Tensor:
    texts, tokens, width = states.shape
    return states.reshape(texts, tokens, heads, width // heads).permute(0, 2, 1, 3)


def _joined(output: Tensor) -> Tensor:
    texts, heads, tokens, size = output.shape
    return output.permute(0, 2, 1, 3).reshape(texts, tokens, heads * size)


def _mpnet(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Any = None,
    position_bias: Any = None,
    *_: Any,
    **__: Any,
) -> Any:
    del attention_mask
    heads = self.num_attention_heads
    query, key, value = (_heads(p(hidden_states), heads) for p in (self.q, self.k, self.v))
    scale = self.attention_head_size**-0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale + position_bias
    allowed = _allowed(query.shape[2], window=None)
    output = attend(query, key, value, token_scores=scores, allowed=allowed, scale=scale)
    return (self.o(_joined(output)),)


def _bert_like(self: nn.Module, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
    heads = self.num_attention_heads
    query, key, value = (
        _heads(p(hidden_states), heads) for p in (self.query, self.key, self.value)
    )
    if type(self).__name__ == "RoFormerSelfAttention":
        sinusoidal = options.get("sinusoidal_pos", arguments[1] if len(arguments) > 1 else None)
        assert sinusoidal is not None
        query, key = self.apply_rotary_position_embeddings(sinusoidal, query, key)
    scale = self.attention_head_size**-0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    allowed = _allowed(query.shape[2], window=None)
    output = attend(query, key, value, token_scores=scores, allowed=allowed, scale=scale)
    return _joined(output), None


def _deberta(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Any,
    output_attentions: bool = False,
    query_states: Any = None,
    relative_pos: Any = None,
    rel_embeddings: Any = None,
) -> Any:
    del attention_mask, output_attentions
    assert query_states is None
    heads, size = self.num_attention_heads, self.attention_head_size
    texts, tokens, _ = hidden_states.shape
    # in_proj holds [head, (query, key, value), size] in its rows.
    made = self.in_proj(hidden_states).reshape(texts, tokens, heads, 3, size)
    query, key, value = (made[:, :, :, part].permute(0, 2, 1, 3) for part in range(3))
    query = query + self.q_bias.reshape(1, heads, 1, size)
    value = value + self.v_bias.reshape(1, heads, 1, size)
    scale = (size * (1 + len(self.pos_att_type))) ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    # The bias between tokens is the model's own; the prompt's columns get none.
    scores = scores + self.disentangled_att_bias(
        query * scale, key, relative_pos, rel_embeddings, 1 + len(self.pos_att_type)
    )
    allowed = _allowed(tokens, window=None)
    output = attend(query, key, value, token_scores=scores, allowed=allowed, scale=scale)
    return _joined(output), None


def _deberta_v2(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Any,
    output_attentions: bool = False,
    query_states: Any = None,
    relative_pos: Any = None,
    rel_embeddings: Any = None,
) -> Any:
    del attention_mask, output_attentions
    assert query_states is None
    heads, size = self.num_attention_heads, self.attention_head_size
    texts, tokens, _ = hidden_states.shape
    query, key, value = (
        _heads(p(hidden_states), heads) for p in (self.query_proj, self.key_proj, self.value_proj)
    )
    kinds = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
    scale = (size * kinds) ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    flat = (texts * heads, tokens, size)
    bias = self.disentangled_attention_bias(
        query.reshape(flat), key.reshape(flat), relative_pos, rel_embeddings, kinds
    )
    scores = scores + bias.reshape(texts, heads, tokens, tokens)
    allowed = _allowed(tokens, window=None)
    output = attend(query, key, value, token_scores=scores, allowed=allowed, scale=scale)
    return _joined(output), None


_FORWARDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("mpnet", "MPNetSelfAttention"): _mpnet,
    ("deberta", "DisentangledSelfAttention"): _deberta,
    ("deberta_v2", "DisentangledSelfAttention"): _deberta_v2,
    ("rembert", "RemBertSelfAttention"): _bert_like,
    ("roformer", "RoFormerSelfAttention"): _bert_like,
    ("megatron_bert", "MegatronBertSelfAttention"): _bert_like,
}


@contextlib.contextmanager
def _by_hand(model: nn.Module) -> Iterator[None]:
    """Put every attention of ``model`` on the functions of this module."""
    AttentionInterface.register("by_hand", _registry_attention)
    AttentionMaskInterface.register("by_hand", lambda *_, **__: None)
    replaced: list[tuple[type, Any]] = []
    for module in model.modules():
        kind = type(module)
        family = kind.__module__.rsplit(".", 2)[-2]
        forward = _FORWARDS.get((family, kind.__name__))
        if forward is not None and all(kind is not seen for seen, _ in replaced):
            replaced.append((kind, kind.forward))
            kind.forward = forward
    if not replaced:
        model.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        for kind, forward in replaced:
            kind.forward = forward


def reference_states(
    model: nn.Module, ids: Tensor, mask: Tensor, prompts: list[Rows] | None = None
) -> Tensor:
    """Last hidden states of a copy of ``model`` whose attention is written out by hand."""
    model = copy.deepcopy(model)
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    _PASS.__init__(prompts=list(prompts or []), token_mask=mask, causal=causal)
    with _by_hand(model):
        states: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states
