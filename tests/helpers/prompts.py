"""Random prompt rows for tests, as the package takes them and as the reference takes them."""

import torch
from torch import Tensor

from dptdr.model import AttentionRows, Geometry, PromptCall
from helpers.reference import Rows


def random_attention(
    geometry: Geometry,
    *,
    prompt: int = 4,
    texts: int = 1,
    seed: int = 0,
    visible: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> AttentionRows:
    """Rows far from zero, so that they take a good share of attention."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, texts, geometry.heads, prompt, geometry.head_dim)
    keys = torch.randn(shape, generator=generator).to(dtype)
    values = torch.randn(shape, generator=generator).to(dtype)
    return AttentionRows(keys, values, visible)


def lengths_visible(lengths: tuple[int, ...], *, longest: int) -> Tensor:
    """Each text sees its first so many rows."""
    return torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]


def as_rows(rows: AttentionRows) -> list[Rows]:
    """The same rows for the hand-written reference."""
    return [Rows(*rows)]


def states(injection, ids: Tensor, mask: Tensor, rows: AttentionRows | None = None) -> Tensor:
    """Last hidden states with the prompt."""
    call = PromptCall(rows)
    return injection(call, input_ids=ids, attention_mask=mask).last_hidden_state
