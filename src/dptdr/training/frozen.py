"""Frozen linear layers, prepacked for fast CPU matrix products.

Frozen weights can be rearranged and rounded once per run instead of in every product. Trainable
weights change every step, so they cannot be packed once.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The layout is tuned for about this many rows per product; other sizes work too, more slowly.
_ROWS = 512


class FrozenLinears:
    """A model's frozen linear layers, prepacked for CPU matrix products.

    Args:
        model: The model; it is not modified. Its frozen weights must not change from now on.
        kind: Dtype of the products. Off the CPU, or if oneDNN does not support the dtype, nothing
            is packed and the layers compute as usual.
    """

    def __init__(self, model: nn.Module, *, kind: torch.dtype) -> None:
        self._layers: list[tuple[nn.Linear, _Packed]] = []
        if not _can_multiply(kind):
            return
        for module in model.modules():
            if type(module) is nn.Linear and _is_frozen(module):
                self._layers.append((module, _Packed(module.weight.detach(), kind=kind)))

    def __len__(self) -> int:
        """Number of packed layers."""
        return len(self._layers)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Compute with the packed weights within the block."""
        try:
            for module, packed in self._layers:
                module.forward = _forward(module, packed)  # type: ignore[method-assign]
            yield
        finally:
            for module, _ in self._layers:
                module.__dict__.pop("forward", None)


def _can_multiply(kind: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # Without AVX-512, oneDNN has no bfloat16 product, and torch does not use oneDNN.
    return kind != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_frozen(module: nn.Linear) -> bool:
    weight = module.weight
    return (
        not weight.requires_grad and weight.device.type == "cpu" and weight.dtype == torch.float32
    )


class _Packed:
    """A weight and its transpose, in the dtype and layout of the products."""

    def __init__(self, weight: Tensor, *, kind: torch.dtype) -> None:
        self.kind = kind
        weight = weight.to(kind)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self.transpose = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), _ROWS)


def _forward(module: nn.Linear, packed: _Packed) -> Any:
    def forward(inputs: Tensor) -> Tensor:
        if inputs.dtype not in (torch.float32, packed.kind):
            return functional.linear(inputs, module.weight, module.bias)
        bias = module.bias
        trained = bias is not None and bias.requires_grad
        output: Tensor = _FrozenLinear.apply(inputs, packed, None if trained else bias)
        return output + bias.to(output.dtype) if trained else output

    return forward


class _FrozenLinear(torch.autograd.Function):
    """A linear layer with gradients for its inputs only."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        ctx.packed, ctx.kind = packed, inputs.dtype
        return _product(inputs, packed.weight, bias=bias, kind=packed.kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        packed: _Packed = ctx.packed
        made = _product(gradients[0], packed.transpose, bias=None, kind=packed.kind)
        return made.to(ctx.kind), None, None


def _product(inputs: Tensor, weight: Tensor, *, bias: Tensor | None, kind: torch.dtype) -> Tensor:
    bias = None if bias is None else bias.to(kind)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.to(kind), weight, bias, "none", [], "")
    return made
