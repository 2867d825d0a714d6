"""Prompt initialisation, by default from tokens in the task's own texts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.model.backbone import Backbone, Side
from dptdr.model.prompt_rows import FeedForwardRows

_TEXTS_PER_BATCH = 16


def token_rows(
    backbone: Backbone,
    texts: Sequence[str],
    *,
    prompt_length: int,
    side: Side,
    seed: int,
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Initialise prompt rows with the backbone's keys and values at random tokens.

    All layers use the same tokens, so each row is consistent across layers. Unlike random rows,
    these lie where attention already looks.

    Args:
        texts: At least one text of the task; ``prompt_length`` texts give the most variety.
        seed: Determines the choice of texts and tokens.

    Returns:
        The rows, float32.

    Raises:
        ValueError: If ``texts`` is empty.
    """
    if not texts:
        raise ValueError("texts: expected at least one to initialise the prompt from, got none")
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


def initial_feed_forward_rows(backbone: Backbone, *, ffn_length: int, seed: int) -> FeedForwardRows:
    """Initialise feed-forward rows from each layer's own units, with zero values.

    Args:
        ffn_length: Rows per layer, sampled without replacement while there are enough units.

    Returns:
        Keys and biases of the sampled units. Values are 0, so the rows do not change the encoder's
        vectors yet.

    Raises:
        UnsupportedBackbone: If this encoder does not support feed-forward rows.
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
        # Special tokens at either end may be drawn too; that does no harm.
        places = torch.randint(0, len(row), (wanted[number],), generator=generator)
        parts.append(stacked[:, :, number][:, :, :, places])
    return parts
