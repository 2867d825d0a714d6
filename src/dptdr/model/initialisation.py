"""Initialisation of prompts, by default from real tokens of the task's texts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.model.backbone import Backbone, Side
from dptdr.model.rows import FeedForwardRows

_TEXTS_PER_BATCH = 16


def token_rows(
    backbone: Backbone,
    texts: Sequence[str],
    *,
    prompt_length: int,
    side: Side,
    seed: int,
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Return the backbone's own keys and values at randomly chosen tokens of some texts.

    The same tokens are used in all layers, so a row tells one consistent story. Such rows are
    where attention already looks, which random rows are not.

    Args:
        texts: At least one text of the task; ``prompt_length`` of them give the most variety.
        seed: Decides which tokens are taken.

    Returns:
        The rows, float32.

    Raises:
        ValueError: If there is no text.
    """
    if not texts:
        raise ValueError("initialising a prompt from tokens needs at least one text")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator).tolist()
    ids = backbone.tokenize([texts[i] for i in order[:prompt_length]], side=side, max_tokens=128)
    parts: list[Tensor] = []
    wanted = [prompt_length // len(ids)] * len(ids)
    for extra in range(prompt_length % len(ids)):
        wanted[extra] += 1
    for start in range(0, len(ids), _TEXTS_PER_BATCH):
        stop = start + _TEXTS_PER_BATCH
        parts += _rows_of(backbone, ids[start:stop], wanted=wanted[start:stop], generator=generator)
    return torch.cat(parts, dim=3)


def own_units(backbone: Backbone, *, ffn_length: int, seed: int) -> FeedForwardRows:
    """Return feed-forward rows that start as units of each layer, with values of zero.

    Args:
        ffn_length: Rows per layer; drawn without repetition while there are enough units.

    Returns:
        Keys and biases of the layer's own units; values are 0, so that the encoder's vectors are
        those without the rows.

    Raises:
        UnsupportedBackbone: If rows cannot be bound to this encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    keys, biases = [], []
    for layer in backbone.injection.feed_forward_layers():
        own, bias = layer.memory()
        order = torch.randperm(own.shape[0], generator=generator)
        chosen = order.repeat(-(-ffn_length // len(order)))[:ffn_length]
        keys.append(own[chosen])
        biases.append(bias[chosen])
    stacked = torch.stack(keys)[:, None]
    return FeedForwardRows(stacked, torch.stack(biases)[:, None], torch.zeros_like(stacked))


def _rows_of(
    backbone: Backbone,
    ids: list[list[int]],
    *,
    wanted: list[int],
    generator: torch.Generator,
) -> list[Tensor]:
    layers: dict[int, tuple[Tensor, Tensor]] = {}

    def observe(layer: int, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> None:
        del query
        layers[layer] = (key.float().cpu(), value.float().cpu())

    with torch.no_grad():
        backbone.vectors(backbone.pad(ids), observer=observe)
    stacked = torch.stack([torch.stack(layers[n]) for n in sorted(layers)])
    parts = []
    for number, row in enumerate(ids):
        # The first and last tokens are special ones; taking them by chance does no harm.
        places = torch.randint(0, len(row), (wanted[number],), generator=generator)
        parts.append(stacked[:, :, number][:, :, :, places])
    return parts
