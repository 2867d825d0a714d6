"""Padding-free forward passes over texts with a shared prompt, for encoding corpora.

Texts are concatenated into one long row (:mod:`dptdr.model.packing`), and linear layers may be
prepacked (:mod:`dptdr.model.kernels`). A trial with and without a prompt compares the vectors to
padded ones; if they differ, encoding stays padded.
"""

import contextlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.errors import DptdrError, UnsupportedBackbone
from dptdr.model import packing
from dptdr.model.backbone import Backbone
from dptdr.model.initialisation import initial_feed_forward_rows
from dptdr.model.kernels import order_weights
from dptdr.model.packing import PackedPass, PromptRows

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
        self._pass = PackedPass(backbone)
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
        return self._pass.vectors(ids, [prompt] * len(ids), merge=False)

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
