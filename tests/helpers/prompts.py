"""Random prompt rows for tests, as the package takes them and as the reference takes them."""

import torch
from torch import Tensor

from dptdr.model import Geometry, PromptCall, Segment
from helpers.reference import Rows


def random_segment(
    geometry: Geometry,
    *,
    prompt: int = 4,
    texts: int = 1,
    seed: int = 0,
    joint: bool = True,
    visible: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Segment:
    """Rows far from zero, so that they take a good share of attention."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, texts, geometry.heads, prompt, geometry.head_dim)
    keys = torch.randn(shape, generator=generator).to(dtype)
    values = torch.randn(shape, generator=generator).to(dtype)
    return Segment(keys, values, visible, joint)


def lengths_visible(lengths: tuple[int, ...], *, longest: int) -> Tensor:
    """Each text sees its first so many rows."""
    return torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]


def as_rows(segments: tuple[Segment, ...]) -> list[Rows]:
    """The same rows for the hand-written reference."""
    return [Rows(s.keys, s.values, s.visible, s.joint) for s in segments]


def states(injection, ids: Tensor, mask: Tensor, segments: tuple[Segment, ...] = ()) -> Tensor:
    """Last hidden states with the prompt."""
    call = PromptCall(segments)
    return injection(call, input_ids=ids, attention_mask=mask).last_hidden_state
