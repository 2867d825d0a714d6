"""Measure how much of attention and feed-forward output comes from the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.model import Method, Side
from dptdr.model.encoder import length_sorted_batches
from dptdr.model.methods import DeepPromptMethod
from dptdr.model.prompt_rows import layer_rows, repeat_heads

_TOKENS_PER_BATCH = 2048


def prompt_shares(
    method: Method, texts: Sequence[str], *, side: Side, max_tokens: int | None = None
) -> tuple[Float[np.ndarray, "layers heads"] | None, Float[np.ndarray, " layers"] | None]:
    """Measure the prompt's share of attention and of feed-forward output.

    Both are means over all tokens of the texts, for each layer with rows. The feed-forward share is
    the mean of ``|added| / (|added| + |own output|)``, using vector norms.

    Returns:
        Values in [0, 1]; ``None`` without such rows, or if the encoder's attention exposes no
        scores.
    """
    if not isinstance(method, DeepPromptMethod) or not method.changes(side) or not texts:
        return None, None
    backbone, module = method.backbone, method.module
    prompt = method.prompt(side)
    assert prompt is not None
    training = module.training
    # Must come before the rows are read, to exclude dropout.
    module.eval()
    shows_scores = backbone.injection.route == "registry"
    with torch.no_grad():
        own_rows = prompt.attention() if shows_scores else None
    masses: dict[int, list[Tensor]] = {}
    shares: dict[int, list[Tensor]] = {}
    real = torch.zeros(0, dtype=torch.bool)

    def observe(
        layer: int, query: Tensor, key: Tensor, _: Tensor, mask: Tensor | None, scale: float
    ) -> None:
        assert own_rows is not None
        place = layer - backbone.geometry.layers + own_rows.keys.shape[0]
        if place < 0:
            return
        query = query.float()
        to_prompt = query @ layer_rows(own_rows, place, query=query)[0].transpose(-1, -2)
        keys = repeat_heads(key.float(), times=query.shape[1] // key.shape[1])
        to_tokens = query @ keys.transpose(-1, -2) * scale
        if mask is not None and mask.dtype == torch.bool:
            to_tokens = to_tokens.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            to_tokens = to_tokens + mask.float()
        mass = torch.sigmoid((to_prompt * scale).logsumexp(dim=-1) - to_tokens.logsumexp(dim=-1))
        masses.setdefault(layer, []).append(mass.transpose(1, 2)[real])

    def observe_feed_forward(layer: int, own: Tensor, with_rows: Tensor) -> None:
        added = (with_rows - own)[real].float().norm(dim=-1)
        plain = own[real].float().norm(dim=-1)
        shares.setdefault(layer, []).append(added / (added + plain).clamp(min=1e-12))

    rows = backbone.tokenize(texts, side=side, max_tokens=max_tokens)
    for places in length_sorted_batches(
        [len(row) for row in rows], token_budget=_TOKENS_PER_BATCH, max_texts=len(rows)
    ):
        tokens = backbone.pad([rows[i] for i in places])
        real = tokens.mask.bool()
        with torch.no_grad():
            method.vectors(
                tokens,
                side=side,
                observer=None if own_rows is None else observe,
                feed_forward_observer=observe_feed_forward,
            )
    module.train(training)
    return _means(masses), _means(shares)


def _means(by_layer: dict[int, list[Tensor]]) -> np.ndarray | None:
    if not by_layer:
        return None
    means = [torch.cat(by_layer[layer]).mean(dim=0) for layer in sorted(by_layer)]
    return torch.stack(means).cpu().numpy().astype(np.float32)


def prompt_health(
    method: Method, *, queries: Sequence[str], passages: Sequence[str], max_tokens: int | None
) -> dict[str, Any]:
    """Measure the prompt's shares on both sides, as JSON values; empty without a prompt.

    Returns:
        ``{"attention_mass": {"query": [[share per head] per layer], "passage": ...},
        "feed_forward_share": {"query": [share per layer], ...}}``, without the parts the prompt has
        no rows for.
    """
    sides: tuple[tuple[Side, Sequence[str]], ...] = (("query", queries), ("passage", passages))
    found: dict[str, Any] = {}
    for side, texts in sides:
        shares = prompt_shares(method, texts, side=side, max_tokens=max_tokens)
        for name, values in zip(("attention_mass", "feed_forward_share"), shares, strict=True):
            if values is not None:
                rounded = np.round(values.astype(np.float64), 5)
                found.setdefault(name, {})[side] = rounded.tolist()
    return found
