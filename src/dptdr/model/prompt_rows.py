"""Prompt rows for attention and feed-forward layers in one forward pass."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

Observer: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, float], None]
"""Called with (layer, query, key, value, mask, scale) before the prompt is added."""


class AttentionRows(NamedTuple):
    """Prompt rows for every attention layer, one set per text or one shared by the batch.

    Args:
        keys: Key rows; ``texts`` is the batch size, or 1 for a shared set.
        visible: Rows each text may attend to; all if ``None``.
    """

    keys: Float[Tensor, "layers texts heads prompt head_dim"]
    values: Float[Tensor, "layers texts heads prompt head_dim"]
    visible: Bool[Tensor, "texts prompt"] | None = None


class FeedForwardRows(NamedTuple):
    """Prompt rows for every feed-forward layer, one set per text or one shared by the batch.

    Args:
        keys: Multiplied with each token state; ``texts`` is the batch size, or 1 for a shared set.
        biases: Added to that product, before the layer's activation.
        values: Added to the layer's output, weighted by the activations.
    """

    keys: Float[Tensor, "layers texts rows dim"]
    biases: Float[Tensor, "layers texts rows"]
    values: Float[Tensor, "layers texts rows dim"]


Activation: TypeAlias = Callable[[Tensor], Tensor]

FeedForwardObserver: TypeAlias = Callable[[int, Tensor, Tensor], None]
"""Called with (layer, the layer's own output, that output with the prompt's rows)."""


class PromptCall:
    """Prompt rows, observers and layer counter of one forward pass.

    Args:
        feed_forward_observer: Receives each feed-forward layer's output without and with the rows.
        modules: Collects the attention modules in call order during a probing pass.

    There may be rows for the upper layers only. The forward pass sets ``depth``, the encoder's
    number of layers.
    """

    __slots__ = (
        "attention",
        "depth",
        "feed_forward",
        "feed_forward_observer",
        "inputs",
        "layer",
        "modules",
        "observer",
    )

    def __init__(
        self,
        attention: AttentionRows | None = None,
        *,
        feed_forward: FeedForwardRows | None = None,
        observer: Observer | None = None,
        feed_forward_observer: FeedForwardObserver | None = None,
        modules: list[nn.Module] | None = None,
    ) -> None:
        self.attention = attention
        self.feed_forward = feed_forward
        self.observer = observer
        self.feed_forward_observer = feed_forward_observer
        self.modules = modules
        # Input of the up projection, kept until the down projection has run.
        self.inputs: Tensor | None = None
        # Index of the next layer, for architectures that reuse one attention module (ALBERT) or
        # whose attention is intercepted; other modules know their layer.
        self.layer = 0
        self.depth = 0

    def place(self, rows: Tensor, layer: int) -> int:
        """Return the index of a layer's rows in ``[layers, ...]``, negative if it has none."""
        return layer - self.depth + rows.shape[0]

    @property
    def has_rows(self) -> bool:
        """True if there are any prompt rows."""
        return self.attention is not None or self.has_feed_forward

    @property
    def has_feed_forward(self) -> bool:
        """True if there are feed-forward rows."""
        return self.feed_forward is not None

    def add_feed_forward(
        self, layer: int, *, states: Tensor, output: Tensor, activation: Activation
    ) -> Tensor:
        """Add the prompt rows' contribution to a feed-forward layer's output."""
        assert self.feed_forward is not None
        place = self.place(self.feed_forward.keys, layer)
        if place < 0:
            return output
        made = feed_forward(
            self.feed_forward, place, states=states, output=output, activation=activation
        )
        if self.feed_forward_observer is not None:
            self.feed_forward_observer(layer, output, made)
        return made


def repeat_heads(
    rows: Float[Tensor, "texts heads prompt head_dim"], *, times: int
) -> Float[Tensor, "texts all_heads prompt head_dim"]:
    """Repeat key/value heads to match the query heads (grouped-query attention)."""
    return rows if times == 1 else rows.repeat_interleave(times, dim=1)


def visible_columns(
    rows: AttentionRows, *, query: Float[Tensor, "texts heads tokens head_dim"]
) -> Bool[Tensor, "texts 1 tokens prompt"]:
    """Mask of the prompt rows each token may attend to."""
    texts, _, tokens, _ = query.shape
    prompt = rows.keys.shape[-2]
    if rows.visible is None:
        return torch.ones(texts, 1, tokens, prompt, dtype=torch.bool, device=query.device)
    return rows.visible[:, None, None, :].expand(texts, 1, tokens, prompt)


def layer_rows(
    rows: AttentionRows, layer: int, *, query: Float[Tensor, "texts heads tokens head_dim"]
) -> tuple[
    Float[Tensor, "texts heads prompt head_dim"], Float[Tensor, "texts heads prompt head_dim"]
]:
    """Return one layer's prompt keys and values, expanded to the query's batch, heads and dtype."""
    keys = rows.keys[layer]
    values = rows.values[layer]
    times = query.shape[1] // keys.shape[1]
    texts = query.shape[0]
    keys = repeat_heads(keys, times=times).to(query.dtype)
    values = repeat_heads(values, times=times).to(query.dtype)
    if keys.shape[0] != texts:
        keys = keys.expand(texts, -1, -1, -1)
        values = values.expand(texts, -1, -1, -1)
    return keys, values


def feed_forward(
    rows: FeedForwardRows,
    layer: int,
    *,
    states: Float[Tensor, "texts tokens dim"],
    output: Float[Tensor, "texts tokens dim"],
    activation: Activation,
) -> Float[Tensor, "texts tokens dim"]:
    """Add the prompt rows' contribution to one feed-forward layer's output.

    Returns:
        ``output + act(states K'^T + b') V'``, in the output's dtype.

    Source:
        The parallel adapter of He et al., arXiv 2110.04366. Differs: keys are initialised from the
        layer's own units and values with zeros, so that training starts exactly at the backbone.
    """
    kind = states.dtype
    keys, biases, values = (x[layer].to(kind) for x in (rows.keys, rows.biases, rows.values))
    # Avoid matmul and bmm: interception takes these for attention.
    if keys.shape[0] == 1:
        active = activation(functional.linear(states, keys[0], biases[0]))
        return output + functional.linear(active, values[0].t()).to(output.dtype)
    active = activation(torch.baddbmm(biases[:, None, :], states, keys.transpose(1, 2)))
    return torch.baddbmm(output, active.to(output.dtype), values.to(output.dtype))
