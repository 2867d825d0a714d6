"""Padding-free attention over a batch whose texts are concatenated into one long row.

Token-wise operations (projections, feed-forward, norms) process one matrix of real tokens,
regardless of task and length. Only attention splits the row into texts and adds each text's prompt.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from dptdr.errors import UnsupportedBackbone
from dptdr.model.attention import KEYWORD, layer_of, prompted_attention, prompted_mask
from dptdr.model.backbone import Backbone, Tokens
from dptdr.model.prompt_rows import Activation, AttentionRows, FeedForwardRows, PromptCall

NAME = "dptdr-packed"

SHORT_TEXT = 16
"""Tokens per text up to which merging beats joining if a task has several texts."""


class PromptRows(NamedTuple):
    """The prompt of one side of a task, laid out for packed attention.

    Args:
        keys: Key rows in the layout of token keys, with the heads of a row adjacent.
        shift: Offset added to token positions.
        feed_forward: Rows for the feed-forward layers, shared by all texts.
    """

    keys: Float[Tensor, "layers prompt heads head_dim"]
    values: Float[Tensor, "layers prompt heads head_dim"]
    shift: int = 0
    feed_forward: FeedForwardRows | None = None

    @property
    def prompt_length(self) -> int:
        """Attention rows per layer; may be 0."""
        return int(self.keys.shape[1])

    def attention(self) -> AttentionRows | None:
        """Convert the attention rows to the layout of padded attention."""
        if not self.prompt_length:
            return None
        keys, values = (x.transpose(1, 2).unsqueeze(1) for x in (self.keys, self.values))
        return AttentionRows(keys, values)

    @property
    def bytes(self) -> int:
        """Size of the rows in bytes."""
        tensors = [self.keys, self.values, *(self.feed_forward or ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class EqualLengthBlock(NamedTuple):
    """Adjacent texts of equal length; ``prompt`` rows are prepended to each text's own."""

    start: int
    texts: int
    tokens: int
    prompt: PromptRows | None

    @property
    def stop(self) -> int:
        """End of the block within the long row."""
        return self.start + self.texts * self.tokens


class Group(NamedTuple):
    """Adjacent texts that attend to a shared prompt in a separate call."""

    start: int
    stop: int
    prompt: PromptRows


class PackedCall(PromptCall):
    """Layout of the long row in one forward pass.

    Args:
        groups: Parts of the row whose prompt attention is computed separately and merged.
        spans: Parts of the row with feed-forward prompt rows.
    """

    __slots__ = ("blocks", "groups", "spans")

    def __init__(
        self,
        blocks: tuple[EqualLengthBlock, ...],
        groups: tuple[Group, ...],
        spans: tuple[Group, ...] = (),
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.groups = groups
        self.spans = spans

    @property
    def has_feed_forward(self) -> bool:
        """True if there are feed-forward rows."""
        return bool(self.spans)

    def add_feed_forward(
        self, layer: int, *, states: Tensor, output: Tensor, activation: Activation
    ) -> Tensor:
        """Add the output of each task's feed-forward rows to its span of the batch, in place."""
        for start, stop, prompt in self.spans:
            rows = prompt.feed_forward
            assert rows is not None
            place = self.place(rows.keys, layer)
            if place < 0:
                continue
            active = activation(
                functional.linear(states[0, start:stop], rows.keys[place, 0], rows.biases[place, 0])
            )
            output[0, start:stop].addmm_(active, rows.values[place, 0])
        return output


class PackedPass:
    """Encodes batches as one long row; the backbone's attention must be :data:`NAME`.

    Raises:
        BackboneError: If the encoder does not accept position ids.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.takes_types = "token_type_ids" in inspect.signature(backbone.model.forward).parameters
        one = torch.ones(1, 1, dtype=torch.long)
        self._first_position = int(backbone.shifted_positions(Tokens(one, one), shift=0)[0, 0])

    def vectors(
        self,
        ids: Sequence[Sequence[int]],
        prompts: Sequence[PromptRows | None],
        *,
        merge: bool | None = None,
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text with its prompt into one float32 vector; call in inference mode.

        Args:
            ids: Token ids of each text, at least one per text. Keep texts of equal length adjacent,
                so that they share one attention call.
            prompts: Prompt of each text; texts of the same task must be adjacent.
            merge: Passed to :func:`plan`.

        Raises:
            BackboneError: If a shifted text exceeds the encoder's positions.
        """
        lengths = [len(row) for row in ids]
        blocks, groups = plan(lengths, prompts, merge=merge)
        spans = feed_forward_spans(lengths, prompts)
        device = self.backbone.device
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[number for row in ids for number in row]], device=device),
            "position_ids": self.positions(lengths, prompts).unsqueeze(0).to(device),
        }
        if self.takes_types:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        output = self.backbone.injection(PackedCall(blocks, groups, spans), **inputs)
        return self._pool(output.last_hidden_state[0].float(), blocks)

    def positions(
        self, lengths: Sequence[int], prompts: Sequence[PromptRows | None]
    ) -> Int[Tensor, " tokens"]:
        """Return the position ids of the long row.

        Raises:
            BackboneError: If a shifted text exceeds the encoder's positions.
        """
        shifts = [0 if prompt is None else prompt.shift for prompt in prompts]
        for shift in set(shifts) - {0}:
            longest = max(n for n, own in zip(lengths, shifts, strict=True) if own == shift)
            # Raises an error if the longest shifted text does not fit.
            last = torch.ones(1, longest, dtype=torch.long)
            self.backbone.shifted_positions(Tokens(last, last), shift=shift)
        starts = [self._first_position + shift for shift in shifts]
        return torch.cat([torch.arange(at, at + n) for at, n in zip(starts, lengths, strict=True)])

    def _pool(
        self, states: Float[Tensor, "tokens dim"], blocks: tuple[EqualLengthBlock, ...]
    ) -> Float[Tensor, "texts dim"]:
        pooling = self.backbone.pooling
        parts = []
        for block in blocks:
            part = states[block.start : block.stop].unflatten(0, (block.texts, block.tokens))
            if pooling.pool == "mean":
                parts.append(part.mean(dim=1))
            else:
                parts.append(part[:, 0 if pooling.pool == "cls" else -1])
        vectors = torch.cat(parts)
        return functional.normalize(vectors, dim=-1) if pooling.normalise else vectors


def feed_forward_spans(
    lengths: Sequence[int], prompts: Sequence[PromptRows | None]
) -> tuple[Group, ...]:
    """Find the parts of the long row with feed-forward rows, one per task.

    Args:
        lengths: Tokens of each text, in row order.
        prompts: Prompt of each text; texts of the same task must be adjacent.

    Returns:
        The parts, in order; tasks without feed-forward rows have none.
    """
    spans: list[Group] = []
    start = 0
    for length, prompt in zip(lengths, prompts, strict=True):
        stop = start + length
        if prompt is not None and prompt.feed_forward is not None:
            if spans and spans[-1].prompt is prompt and spans[-1].stop == start:
                spans[-1] = spans[-1]._replace(stop=stop)
            else:
                spans.append(Group(start, stop, prompt))
        start = stop
    return tuple(spans)


def plan(
    lengths: Sequence[int], prompts: Sequence[PromptRows | None], *, merge: bool | None = None
) -> tuple[tuple[EqualLengthBlock, ...], tuple[Group, ...]]:
    """Decide how adjacent texts attend to their prompts.

    Joining copies the prompt for every text; merging adds one attention call per task and blends
    the two results. Merging pays off for short texts with a shared task (``results/serving.md``).

    Args:
        lengths: Tokens of each text, in row order.
        prompts: Prompt of each text; texts of the same task must be adjacent.
        merge: Force merging (true) or joining (false); chosen automatically by default.
    """
    blocks: list[EqualLengthBlock] = []
    groups: list[Group] = []
    first = start = 0
    while first < len(lengths):
        prompt = prompts[first]
        last = first
        while last < len(lengths) and prompts[last] is prompt:
            last += 1
        if prompt is not None and not prompt.prompt_length:
            prompt = None
        stop = start + sum(lengths[first:last])
        apart = prompt is not None and (
            merge
            if merge is not None
            else last - first >= 2 and stop - start <= SHORT_TEXT * (last - first)
        )
        if apart and prompt is not None:
            groups.append(Group(start, stop, prompt))
        while first < last:
            texts = 1
            while first + texts < last and lengths[first + texts] == lengths[first]:
                texts += 1
            blocks.append(EqualLengthBlock(start, texts, lengths[first], None if apart else prompt))
            start += texts * lengths[first]
            first += texts
    return tuple(blocks), tuple(groups)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "texts heads tokens head_dim"],
    key: Float[Tensor, "texts kv_heads tokens head_dim"],
    value: Float[Tensor, "texts kv_heads tokens head_dim"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "texts tokens heads head_dim"], None]:
    """Attend within each text of the long row; pass other calls to padded attention.

    Args:
        query: Token queries; ``texts`` is 1 for a :class:`PackedCall`.
        attention_mask: Ignored for packed calls, whose blocks define what each token sees.
        options: As transformers passes them, with the call under ``dptdr_prompt``.

    Raises:
        UnsupportedBackbone: If packing cannot express this attention.
    """
    call = options.get(KEYWORD)
    if not isinstance(call, PackedCall):
        return prompted_attention(module, query, key, value, attention_mask, **options)
    if options.get("position_bias") is not None or options.get("softcap") is not None:
        raise UnsupportedBackbone("packed attention does not support position biases and soft caps")
    if query.shape[0] != 1 or query.shape[1] != key.shape[1]:
        raise UnsupportedBackbone("packed attention does not support grouped-query attention")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    layer = layer_of(module, call=call)
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    output = attend(call, layer, query=rows[0], key=rows[1], value=rows[2], scale=scale)
    return output.unsqueeze(0), None


def attend(
    call: PackedCall,
    layer: int,
    *,
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    scale: float,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Compute one layer's attention output over the long row.

    Source:
        Merging: Milakov & Gimelshein, *Online normalizer calculation for softmax*,
        arXiv 1805.02867: two partial softmaxes are blended by their log-sum-exp.
    """
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    for block in call.blocks:
        shape = (block.texts, block.tokens)
        cut = slice(block.start, block.stop)
        keys, values = key[cut].unflatten(0, shape), value[cut].unflatten(0, shape)
        if block.prompt is not None and (place := call.place(block.prompt.keys, layer)) >= 0:
            shared = (block.texts, -1, -1, -1)
            keys = torch.cat([block.prompt.keys[place].expand(shared), keys], dim=1)
            values = torch.cat([block.prompt.values[place].expand(shared), values], dim=1)
        made, total = _attention(
            query[cut].unflatten(0, shape), keys, values, scale=scale, sums=bool(call.groups)
        )
        outputs.append(made.flatten(0, 1))
        if total is not None:
            sums.append(total.transpose(1, 2).flatten(0, 1))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if call.groups:
        _meet_groups(call, layer, query=query, output=output, sums=torch.cat(sums), scale=scale)
    return output


def _meet_groups(
    call: PackedCall,
    layer: int,
    *,
    query: Tensor,
    output: Tensor,
    sums: Tensor,
    scale: float,
) -> None:
    """Blend prompt attention into the output, in place."""
    for group in call.groups:
        place = call.place(group.prompt.keys, layer)
        if place < 0:
            continue
        cut = slice(group.start, group.stop)
        made, total = _attention(
            query[cut].unsqueeze(0),
            group.prompt.keys[place].unsqueeze(0),
            group.prompt.values[place].unsqueeze(0),
            scale=scale,
            sums=True,
        )
        assert total is not None
        share = torch.sigmoid(total[0].transpose(0, 1) - sums[cut]).unsqueeze(-1)
        output[cut] = torch.lerp(output[cut], made[0], share)


def _attention(
    query: Float[Tensor, "texts tokens heads head_dim"],
    key: Float[Tensor, "texts rows heads head_dim"],
    value: Float[Tensor, "texts rows heads head_dim"],
    *,
    scale: float,
    sums: bool,
) -> tuple[Float[Tensor, "texts tokens heads head_dim"], Tensor | None]:
    """Compute plain attention and optionally its log-sum-exp ``[texts, heads, tokens]``."""
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if q.device.type == "cpu" and q.dtype == torch.float32:
        made, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=None, scale=scale
        )
        return made.transpose(1, 2), total
    if not sums:
        made = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return made.transpose(1, 2), None
    scores = (q @ k.transpose(-1, -2)).float() * scale
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2), scores.logsumexp(-1).to(q.dtype)


def register() -> None:
    """Register packed attention with transformers, with the padded mask function."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, prompted_mask)
