"""Prepack linear layers for fast CPU inference.

PyTorch's matrix library reorders each weight on every call, although a frozen encoder needs that
only once. A backbone with prepacked layers can no longer be trained or saved, so use a private
copy.
"""

import contextlib
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.errors import UnsupportedBackbone
from dptdr.model.backbone import Backbone, Tokens

_TOLERANCE = 2e-5


class OrderedLinear(nn.Module):
    """A linear layer whose weight is stored in the CPU kernel's own layout.

    Args:
        linear: The layer to replace; its weight is not kept.
        gelu: Fuse the exact GELU into the matrix product.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.gelu = gelu
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._forward_hooks = linear._forward_hooks
        self._forward_pre_hooks = linear._forward_pre_hooks
        self.ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 0)

    def forward(self, inputs: Float[Tensor, "*rows in_features"]) -> Tensor:
        """Compute ``inputs @ weight.T + bias``, with GELU if it was fused."""
        activation, kind = ("gelu", "none") if self.gelu else ("none", "")
        made: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.ordered, self.bias, activation, [], kind
        )
        return made


def order_weights(backbone: Backbone) -> bool:
    """Prepack a backbone's linear layers, unless this changes its vectors.

    Args:
        backbone: An inference-only float32 backbone on the CPU. Its fingerprint is computed first,
            because prepacked weights cannot be read.

    Returns:
        True if the layers were replaced; false if the kernel is missing, the dtype is not float32,
        or a vector would change by more than 2e-5.
    """
    if backbone.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if any(p.dtype != torch.float32 for p in backbone.model.parameters()):
        return False
    _ = backbone.fingerprint
    # Bind feed-forward rows while the weights are still readable; the hooks move along.
    with contextlib.suppress(UnsupportedBackbone):
        backbone.injection.feed_forward_layers()
    probe = Tokens(torch.arange(5, 29).view(2, 12), torch.ones(2, 12, dtype=torch.long))
    with torch.inference_mode():
        before = backbone.vectors(probe)
    undo = _exchange(backbone.model)
    try:
        with torch.inference_mode():
            after = backbone.vectors(probe)
        scale = max(1.0, float(before.abs().max()))
        good = bool(torch.allclose(before, after, rtol=0.0, atol=_TOLERANCE * scale))
    except (RuntimeError, AttributeError, TypeError):
        good = False
    if not good or not undo:
        for parent, name, module in undo:
            setattr(parent, name, module)
        return False
    return True


def _exchange(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace all linear layers; return the originals with their parents and names."""
    undo: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        # In BERT-like models a dense layer and its activation share one module.
        activation = getattr(parent, "intermediate_act_fn", None)
        fuse = _is_exact_gelu(activation)
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            undo.append((parent, name, child))
            fused = fuse and name == "dense"
            try:
                setattr(parent, name, OrderedLinear(child, gelu=fused))
            except RuntimeError:
                continue
            if fused:
                assert isinstance(activation, nn.Module)
                undo.append((parent, "intermediate_act_fn", activation))
                parent.intermediate_act_fn = nn.Identity()
    return undo


def _is_exact_gelu(activation: Any) -> bool:
    """Detect the exact GELU by its output."""
    if not isinstance(activation, nn.Module):
        return False
    points = torch.tensor([-2.0, -0.5, 0.3, 1.7])
    exact = torch.tensor([x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in points.tolist()])
    with torch.inference_mode():
        made = activation(points)
    return isinstance(made, Tensor) and bool(torch.allclose(made, exact, rtol=0.0, atol=1e-6))
