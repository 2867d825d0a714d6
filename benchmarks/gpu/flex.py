"""A mixed batch through one fused kernel: FlexAttention, for accelerators.

The batch is one long row, as in :mod:`dptdr.model.packing`, but attention is a single call: the
prompt rows of all tasks of the batch come before the tokens, each task's once. A block mask lets a
token attend to the tokens of its own text and the rows of its own task; fully masked blocks are
never computed, and no prompt is copied per text.

On a CPU the same call runs without the compiler, as a reference for the kernel.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from dptdr.errors import BackboneError, DptdrError, UnsupportedBackbone
from dptdr.model.attention import KEYWORD, LAYERS_ATTRIBUTE, prompted_attention, prompted_mask
from dptdr.model.backbone import Backbone
from dptdr.model.packing import PackedPass, PromptRows
from dptdr.model.prompt_rows import PromptCall
from dptdr.serving.forward import BatchRow, Forward, probe_rows

NAME = "dptdr-flex"

_TOKENS_STEP = 128
"""Rows are filled up to a multiple of this: the kernel's block, and few different shapes."""

_NOBODY = -1
_TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class FlexCall(PromptCall):
    """What a forward pass over one long row carries to its attention layers.

    Args:
        keys: Key rows of all tasks of the batch, one behind the other; ``None`` without prompts.
        values: Value rows.
        mask: Which token sees which prompt row and which token.
    """

    __slots__ = ("keys", "mask", "values")

    def __init__(
        self,
        keys: Float[Tensor, "layers 1 heads rows head_dim"] | None,
        values: Float[Tensor, "layers 1 heads rows head_dim"] | None,
        mask: BlockMask,
    ) -> None:
        super().__init__()
        self.keys, self.values, self.mask = keys, values, mask


class FlexForward(Forward):
    """Runs mixed batches with one attention call per layer; meant for accelerators.

    Args:
        backbone: The server's own backbone; it is put on the fused attention.

    Raises:
        DptdrError: If the fused attention cannot give the padded vectors of this backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, layout="padded", ordered=False)
        if backbone.injection.route != "registry":
            raise UnsupportedBackbone(
                f"backbone '{backbone.name}': its attention does not ask the registry, so it "
                "cannot run through FlexAttention; use the padded layout"
            )
        self._packed_pass = PackedPass(backbone)
        register()
        backbone.model.set_attn_implementation(NAME)
        parameter: Tensor = next(backbone.model.parameters())
        self.tolerance = _TOLERANCES.get(parameter.dtype, 2e-5)
        self._prove()

    def vectors(
        self, rows: Sequence[BatchRow], *, merge: bool | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Return one float32 vector per row, in the given order; ``merge`` has no meaning here."""
        del merge
        with torch.inference_mode():
            lengths = [len(row.ids) for row in rows]
            total = _filled(sum(lengths))
            device = self.backbone.device
            prompts = [row.prompt for row in rows]
            call = make_call(lengths, prompts, total=total, device=device)
            ids = [i for row in rows for i in row.ids]
            positions = self._packed_pass.positions(lengths, prompts).tolist()
            filling = total - len(ids)
            inputs: dict[str, Any] = {
                "input_ids": torch.tensor([ids + [ids[0]] * filling], device=device),
                "position_ids": torch.tensor([positions + [positions[0]] * filling], device=device),
            }
            if self._packed_pass.takes_types:
                inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
            states = self.backbone.injection(call, **inputs).last_hidden_state[0]
            return self._pooled(states[: len(ids)].float(), lengths)

    def _pooled(
        self, states: Float[Tensor, "tokens dim"], lengths: list[int]
    ) -> Float[Tensor, "texts dim"]:
        counts = torch.tensor(lengths, device=states.device)
        pooling = self.backbone.pooling
        if pooling.pool == "mean":
            owners = torch.repeat_interleave(counts)
            sums = states.new_zeros(len(lengths), states.shape[1])
            vectors = sums.index_add_(0, owners, states) / counts.unsqueeze(1)
        else:
            stops = counts.cumsum(0)
            vectors = states[stops - counts if pooling.pool == "cls" else stops - 1]
        if pooling.normalise:
            vectors = nn.functional.normalize(vectors, dim=-1)
        return vectors

    def _prove(self) -> None:
        # Of the probes the attention rows alone: feed-forward rows do not pass through here.
        rows = [
            BatchRow(row.ids, None if row.prompt is None else PromptRows(*row.prompt[:2]))
            for row in probe_rows(self.backbone)
        ]
        try:
            made = self.vectors(rows)
            expected = torch.stack([self.single(row) for row in rows])
        except (DptdrError, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise BackboneError(
                f"backbone '{self.backbone.name}': a pass through FlexAttention failed with "
                f"{type(error).__name__}: {error}; use the padded layout"
            ) from error
        scale = max(1.0, float(expected.norm(dim=1).max()))
        difference = float((made - expected).abs().max()) / scale
        if not difference <= self.tolerance:
            raise BackboneError(
                f"backbone '{self.backbone.name}': vectors of FlexAttention differ from padded "
                f"ones by {difference:.1e}; use the padded layout"
            )


def make_call(
    lengths: Sequence[int],
    prompts: Sequence[PromptRows | None],
    *,
    total: int,
    device: torch.device,
) -> FlexCall:
    """Lay out the prompts of a batch and say who sees what.

    Args:
        lengths: Tokens of each text, in the order of the row.
        prompts: The prompt of each text.
        total: Length of the row with its filling; filling sees nothing but itself.
        device: Where to compute.
    """
    counts = torch.tensor([*lengths, total - sum(lengths)], device=device)
    texts = torch.arange(len(lengths) + 1, device=device)
    text_of = torch.repeat_interleave(texts, counts, output_size=total)
    distinct: dict[int, PromptRows] = {}
    for prompt in prompts:
        if prompt is not None:
            distinct.setdefault(id(prompt), prompt)
    numbers = {name: number for number, name in enumerate(distinct)}
    own = [numbers.get(id(prompt), _NOBODY) for prompt in prompts]
    task_of = torch.tensor([*own, _NOBODY], device=device)[text_of]
    keys, values, owner_of = _side_by_side(list(distinct.values()), device=device)
    return FlexCall(keys, values, _mask(text_of, task_of, owner_of))


def _side_by_side(
    prompts: list[PromptRows], *, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Int[Tensor, " rows"]]:
    """Return keys, values and the number of the prompt that each row belongs to."""
    if not prompts:
        return None, None, torch.zeros(0, dtype=torch.long, device=device)
    rows = sum(prompt.prompt_length for prompt in prompts)
    filling = _filled(rows) - rows
    owners = [n for n, prompt in enumerate(prompts) for _ in range(prompt.prompt_length)]
    # Belongs to none: not even to texts without a prompt.
    owner_of = torch.tensor(owners + [_NOBODY - 1] * filling, device=device)
    sides = []
    for name in ("keys", "values"):
        parts = [getattr(prompt, name) for prompt in prompts]
        layers, _, heads, head_dim = parts[0].shape
        parts.append(parts[0].new_zeros(layers, filling, heads, head_dim))
        sides.append(torch.cat(parts, dim=1).transpose(1, 2).unsqueeze(1))
    return sides[0], sides[1], owner_of


def _mask(
    text_of: Int[Tensor, " tokens"], task_of: Int[Tensor, " tokens"], owner_of: Int[Tensor, " rows"]
) -> BlockMask:
    """Return who sees whom: own task's rows, and own text's tokens."""
    tasks = torch.cat([owner_of, torch.full_like(text_of, _NOBODY - 1)])
    texts = torch.cat([torch.full_like(owner_of, -1), text_of])
    # A lambda, for it is looked at by its code, which a decorated function hides.
    return create_block_mask(
        lambda _batch, _head, query, key: (
            (tasks[key] == task_of[query]) | (texts[key] == text_of[query])
        ),
        B=None,
        H=None,
        Q_LEN=text_of.shape[0],
        KV_LEN=tasks.shape[0],
        device=text_of.device,
        _compile=text_of.device.type == "cuda",
    )


def flex_packed_attention(
    module: nn.Module,
    query: Float[Tensor, "texts heads tokens head_dim"],
    key: Float[Tensor, "texts kv_heads tokens head_dim"],
    value: Float[Tensor, "texts kv_heads tokens head_dim"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "texts tokens heads head_dim"], None]:
    """Attend within each text of one long row and to its task's rows, in one call.

    Raises:
        UnsupportedBackbone: If a flex call meets an attention that needs more than the mask says.

    Source:
        Dong et al., *Flex Attention*, arXiv 2412.05496. Differs: keys of prompts come before
        those of the tokens, once per task.
    """
    call = options.get(KEYWORD)
    if not isinstance(call, FlexCall):
        return prompted_attention(module, query, key, value, attention_mask, **options)
    if options.get("position_bias") is not None or options.get("softcap") is not None:
        raise UnsupportedBackbone("position biases and soft caps cannot be packed")
    if query.shape[0] != 1 or query.shape[1] != key.shape[1]:
        raise UnsupportedBackbone("shared key heads cannot be packed")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    layers: tuple[int, ...] = getattr(module, LAYERS_ATTRIBUTE, ())
    layer = layers[0] if len(layers) == 1 else call.layer
    call.layer += 1
    if call.keys is not None and call.values is not None:
        key = torch.cat([call.keys[layer], key], dim=2)
        value = torch.cat([call.values[layer], value], dim=2)
    output = _kernel(query.device)(query, key, value, block_mask=call.mask, scale=scale)
    return output.transpose(1, 2).contiguous(), None


_COMPILED: dict[str, Callable[..., Tensor]] = {}


def _kernel(device: torch.device) -> Callable[..., Tensor]:
    if device.type == "cpu":
        return _reference
    if "kernel" not in _COMPILED:
        _COMPILED["kernel"] = torch.compile(flex_attention)
    return _COMPILED["kernel"]


def _reference(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        # That it is slow without the compiler is known: it is the reference.
        warnings.simplefilter("ignore")
        made: Tensor = flex_attention(query, key, value, **options)
    return made


def _filled(count: int) -> int:
    return -(-count // _TOKENS_STEP) * _TOKENS_STEP


def register() -> None:
    """Make the fused attention known to transformers, with the padded one's mask function."""
    AttentionInterface.register(NAME, flex_packed_attention)
    AttentionMaskInterface.register(NAME, prompted_mask)
