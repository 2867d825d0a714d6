"""What enters attention: rows of keys and values, per layer, for a batch of texts."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Observer: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, float], None]
"""Called with (layer, query, key, value, mask, scale) before the prompt is added."""


class Segment(NamedTuple):
    """Prompt rows of every layer, for one text each or shared by all texts of a batch.

    Args:
        keys: Key rows; ``texts`` is the batch size, or 1 when all texts share the rows.
        values: Value rows, laid out as the keys.
        visible: Which rows each text may attend to; ``None`` means all of them.
        joint: True: token and prompt keys share one softmax, as in prefix tuning. False: the
            prompt has a softmax of its own and its result is added, so that zero values leave the
            backbone exactly as it is.
    """

    keys: Float[Tensor, "layers texts heads prompt head_dim"]
    values: Float[Tensor, "layers texts heads prompt head_dim"]
    visible: Bool[Tensor, "texts prompt"] | None = None
    joint: bool = True


class PromptCall:
    """All that one forward pass of the backbone carries to its attention layers.

    Args:
        segments: Prompt rows; none is the bare backbone.
        observer: Looks at each layer's queries, keys and values.
        modules: Where a probing pass collects the attention modules in call order.
    """

    __slots__ = ("layer", "modules", "observer", "segments")

    def __init__(
        self,
        segments: tuple[Segment, ...] = (),
        *,
        observer: Observer | None = None,
        modules: list[nn.Module] | None = None,
    ) -> None:
        self.segments = segments
        self.observer = observer
        self.modules = modules
        # Next layer, for architectures that run one attention module several times (ALBERT) or
        # whose attention is intercepted; others know their layer.
        self.layer = 0


def repeat_heads(
    rows: Float[Tensor, "texts heads prompt head_dim"], *, times: int
) -> Float[Tensor, "texts all_heads prompt head_dim"]:
    """Repeat key/value heads so that each query head has its own (grouped-query attention)."""
    return rows if times == 1 else rows.repeat_interleave(times, dim=1)


def visible_columns(
    segment: Segment, *, query: Float[Tensor, "texts heads tokens head_dim"]
) -> Bool[Tensor, "texts 1 tokens prompt"]:
    """Return which prompt columns each token query may attend to."""
    texts, _, tokens, _ = query.shape
    prompt = segment.keys.shape[-2]
    if segment.visible is None:
        return torch.ones(texts, 1, tokens, prompt, dtype=torch.bool, device=query.device)
    return segment.visible[:, None, None, :].expand(texts, 1, tokens, prompt)


def layer_rows(
    segment: Segment, layer: int, *, query: Float[Tensor, "texts heads tokens head_dim"]
) -> tuple[
    Float[Tensor, "texts heads prompt head_dim"], Float[Tensor, "texts heads prompt head_dim"]
]:
    """Return one layer's prompt keys and values in the query's shape, heads and dtype."""
    keys = segment.keys[layer]
    values = segment.values[layer]
    times = query.shape[1] // keys.shape[1]
    texts = query.shape[0]
    keys = repeat_heads(keys, times=times).to(query.dtype)
    values = repeat_heads(values, times=times).to(query.dtype)
    if keys.shape[0] != texts:
        keys = keys.expand(texts, -1, -1, -1)
        values = values.expand(texts, -1, -1, -1)
    return keys, values
