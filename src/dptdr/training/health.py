"""How a deep prompt fares: the share of attention that each layer and head gives to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.model import AttentionRows, Method, Side
from dptdr.model.encoder import length_sorted_batches
from dptdr.model.methods import DeepPromptMethod
from dptdr.model.rows import layer_rows, repeat_heads

_TOKENS_PER_BATCH = 2048


def attention_mass(
    method: Method, texts: Sequence[str], *, side: Side, max_tokens: int | None = None
) -> Float[np.ndarray, "layers heads"] | None:
    """Return the share of attention that each layer's heads give to the prompt.

    The mean over all tokens of the texts.

    Args:
        method: A tuned method.
        texts: Some texts.
        side: Which side they are.
        max_tokens: Longest text.

    Returns:
        Numbers in [0, 1]; ``None`` where there is no deep prompt on this side, or the encoder
        computes attention in a way that shows no scores.
    """
    if not isinstance(method, DeepPromptMethod) or not method.changes(side) or not texts:
        return None
    backbone = method.backbone
    if backbone.injection.route != "registry":
        return None
    prompt = method.prompt(side)
    assert prompt is not None
    training = method.module.training
    # Before the rows are taken: dropout must not blur what is looked at.
    method.module.eval()
    with torch.no_grad():
        prompt_rows = prompt.attention()
    if prompt_rows is None:
        method.module.train(training)
        return None
    rows = backbone.tokenize(texts, side=side, max_tokens=max_tokens)
    sums: dict[int, Tensor] = {}
    tokens_seen = 0
    for places in length_sorted_batches(
        [len(row) for row in rows], token_budget=_TOKENS_PER_BATCH, most_texts=len(rows)
    ):
        tokens = backbone.pad([rows[i] for i in places])
        real = tokens.mask[:, None, :].float()

        def observe(
            layer: int,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor | None,
            scale: float,
            real: Tensor = real,
        ) -> None:
            shares = _shares(prompt_rows, layer=layer, query=query, key=key, mask=mask, scale=scale)
            total = (shares * real).sum(dim=(0, 2))
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total

        with torch.no_grad():
            method.vectors(tokens, side=side, observer=observe)
        tokens_seen += int(tokens.mask.sum())
    method.module.train(training)
    stacked = torch.stack([sums[layer] for layer in sorted(sums)]) / max(1, tokens_seen)
    return stacked.cpu().numpy().astype(np.float32)


def _shares(
    rows: AttentionRows,
    *,
    layer: int,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Float[Tensor, "texts heads tokens"]:
    """Return what share of each token's attention the prompt gets."""
    query = query.float()
    times = query.shape[1] // key.shape[1]
    keys, _ = layer_rows(rows, layer, query=query)
    to_prompt = query @ keys.float().transpose(-1, -2) * scale
    to_tokens = query @ repeat_heads(key.float(), times=times).transpose(-1, -2) * scale
    if mask is not None and mask.dtype == torch.bool:
        to_tokens = to_tokens.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        to_tokens = to_tokens + mask.float()
    return torch.sigmoid(to_prompt.logsumexp(dim=-1) - to_tokens.logsumexp(dim=-1))


def feed_forward_share(
    method: Method, texts: Sequence[str], *, side: Side, max_tokens: int | None = None
) -> Float[np.ndarray, " layers"] | None:
    """Return how much of each feed-forward layer's output comes from the prompt's rows.

    The mean over all tokens of the texts of ``|added| / (|added| + |own output|)``, lengths of
    vectors.

    Args:
        method: A tuned method.
        texts: Some texts.
        side: Which side they are.
        max_tokens: Longest text.

    Returns:
        Numbers in [0, 1]; ``None`` where there are no such rows on this side.
    """
    if not isinstance(method, DeepPromptMethod) or not method.changes(side) or not texts:
        return None
    prompt = method.prompt(side)
    assert prompt is not None
    if not prompt.ffn_length:
        return None
    training = method.module.training
    method.module.eval()
    rows = method.backbone.tokenize(texts, side=side, max_tokens=max_tokens)
    shares: dict[int, list[Tensor]] = {}
    for places in length_sorted_batches(
        [len(row) for row in rows], token_budget=_TOKENS_PER_BATCH, most_texts=len(rows)
    ):
        tokens = method.backbone.pad([rows[i] for i in places])
        real = tokens.mask.bool()

        def observe(layer: int, own: Tensor, with_rows: Tensor, real: Tensor = real) -> None:
            added = (with_rows - own)[real].float().norm(dim=-1)
            plain = own[real].float().norm(dim=-1)
            shares.setdefault(layer, []).append(added / (added + plain).clamp(min=1e-12))

        with torch.no_grad():
            method.vectors(tokens, side=side, feed_forward_observer=observe)
    method.module.train(training)
    means = torch.stack([torch.cat(shares[layer]).mean() for layer in sorted(shares)])
    return means.cpu().numpy().astype(np.float32)


def prompt_health(
    method: Method, *, queries: Sequence[str], passages: Sequence[str], max_tokens: int | None
) -> dict[str, Any]:
    """Return what the prompt does on both sides as JSON values; empty without a deep prompt.

    Args:
        method: A tuned method.
        queries: Some queries.
        passages: Some passages.
        max_tokens: Longest text.

    Returns:
        ``{"attention_mass": {"query": [[share per head] per layer], "passage": ...},
        "feed_forward_share": {"query": [share per layer], ...}}``; what the prompt has no rows for
        is left out.
    """
    sides: tuple[tuple[Side, Sequence[str]], ...] = (("query", queries), ("passage", passages))
    found: dict[str, Any] = {}
    for side, texts in sides:
        mass = attention_mass(method, texts, side=side, max_tokens=max_tokens)
        if mass is not None:
            rounded = [[round(float(share), 5) for share in row] for row in mass]
            found.setdefault("attention_mass", {})[side] = rounded
        shares = feed_forward_share(method, texts, side=side, max_tokens=max_tokens)
        if shares is not None:
            own = [round(float(share), 5) for share in shares]
            found.setdefault("feed_forward_share", {})[side] = own
    return found
