"""Padding-free forward passes over texts with a shared prompt, for encoding corpora.

Texts are concatenated into one long row (:mod:`dptdr.model.packing`), and linear layers may be
prepacked (:mod:`dptdr.model.kernels`). A trial with and without a prompt compares the vectors to
padded ones; if they differ, encoding stays padded.
"""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.errors import DptdrError, UnsupportedBackbone
from dptdr.model import packing
from dptdr.model.backbone import Backbone, Tokens
from dptdr.model.initialisation import initial_feed_forward_rows
from dptdr.model.kernels import order_weights
from dptdr.model.packing import EqualLengthBlock, PackedCall, PromptRows

_TOLERANCE = 2e-5
_PROBE_TOKENS = 300
"""Length of the longest probe text, beyond any local attention window."""


class Unpadded:
    """Encodes batches of one task without padding.

    Args:
        backbone: A backbone that nothing else uses: it is switched to packed attention with
            prepacked linear layers, and can then no longer be trained or saved.

    Raises:
        DptdrError: If this backbone cannot be packed. The backbone is unchanged; the message gives
            the reason.
    """

    def __init__(self, backbone: Backbone) -> None:
        reason = why_not_packable(backbone)
        if reason:
            raise DptdrError(f"cannot pack backbone '{backbone.name}': {reason}")
        self.backbone = backbone
        self._takes_types = "token_type_ids" in inspect.signature(backbone.model.forward).parameters
        one = torch.ones(1, 1, dtype=torch.long)
        first = backbone.shifted_positions(Tokens(one, one), shift=0)
        self._first_position = int(first[0, 0])
        before = backbone.model.config._attn_implementation
        packing.register()
        backbone.model.set_attn_implementation(packing.NAME)
        reason = self._differs()
        if reason:
            backbone.model.set_attn_implementation(before)
            raise DptdrError(f"cannot pack backbone '{backbone.name}': {reason}")
        self.ordered = order_weights(backbone)

    def vectors(
        self, ids: Sequence[Sequence[int]], *, prompt: PromptRows | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one float32 vector; call in inference mode.

        Args:
            ids: Token ids of each text, at least one per text. Keep texts of equal length adjacent,
                so that they share one attention call.

        Raises:
            BackboneError: If a shifted text exceeds the encoder's positions.
        """
        lengths = [len(row) for row in ids]
        shift = 0 if prompt is None else prompt.shift
        if shift:
            # Raises an error if the longest shifted text does not fit.
            last = torch.ones(1, max(lengths), dtype=torch.long)
            self.backbone.shifted_positions(Tokens(last, last), shift=shift)
        prompts = [prompt] * len(ids)
        blocks, groups = packing.plan(lengths, prompts, merge=False)
        spans = packing.feed_forward_spans(lengths, prompts)
        positions = torch.cat([torch.arange(length) for length in lengths])
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[number for row in ids for number in row]]),
            "position_ids": (positions + self._first_position + shift).unsqueeze(0),
        }
        if self._takes_types:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        output = self.backbone.injection(PackedCall(blocks, groups, spans), **inputs)
        return self._pool(output.last_hidden_state[0].float(), blocks)

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
        return torch.nn.functional.normalize(vectors, dim=-1) if pooling.normalise else vectors

    def _differs(self) -> str:
        """Return how packed vectors differ from padded ones, or an empty string if they agree."""
        ids, prompts = _probe(self.backbone)
        worst = 0.0
        try:
            with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                for prompt in prompts:
                    made = self.vectors(ids, prompt=prompt)
                    expected = torch.cat([self._padded(row, prompt=prompt) for row in ids])
                    scale = max(1.0, float(expected.abs().max()))
                    worst = max(worst, float((made - expected).abs().max()) / scale)
        except (DptdrError, RuntimeError, TypeError, ValueError, IndexError) as error:
            return f"a packed forward pass failed ({type(error).__name__}: {error})"
        return "" if worst <= _TOLERANCE else f"packed and padded vectors differ by {worst:.1e}"

    def _padded(self, row: list[int], *, prompt: PromptRows | None) -> Float[Tensor, "1 dim"]:
        return self.backbone.vectors(
            self.backbone.pad([row]),
            attention=None if prompt is None else prompt.attention(),
            feed_forward=None if prompt is None else prompt.feed_forward,
        )


def why_not_packable(backbone: Backbone) -> str:
    """Return why batches for a backbone cannot be packed, or an empty string if they can."""
    config = backbone.model.config
    if backbone.injection.route != "registry":
        return "it does not use the transformers attention registry"
    if backbone.device.type != "cpu":
        return "on an accelerator, one padded call is cheaper than many small ones"
    if any(getattr(module, "is_causal", False) for module in backbone.model.modules()):
        return "its attention is causal"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        return "some layers use local attention windows"
    return ""


def _probe(backbone: Backbone) -> tuple[list[list[int]], list[PromptRows | None]]:
    """Return texts of several lengths, and prompts to compare them with."""
    generator = torch.Generator().manual_seed(0)
    geometry = backbone.geometry
    shape = (2, geometry.layers, 3, geometry.heads, geometry.head_dim)
    prompt = PromptRows(*torch.randn(shape, generator=generator))
    prompts = [None, prompt]
    with contextlib.suppress(UnsupportedBackbone):
        rows = initial_feed_forward_rows(backbone, ffn_length=2, seed=0)
        prompts.append(prompt._replace(feed_forward=rows._replace(values=rows.keys)))
    longest = min(_PROBE_TOKENS, backbone.pooling.max_tokens)
    vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
    ids = [
        torch.randint(min(5, vocabulary - 1), vocabulary, (length,), generator=generator).tolist()
        for length in (longest, 7, 7, 2)
    ]
    return ids, prompts
