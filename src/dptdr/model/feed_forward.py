"""Prompt rows in the feed-forward layers, located by one probing pass and added by hooks.

A feed-forward layer is a key-value memory: ``out = act(x K^T + b) V``. A prompt extends it by
``act(x K'^T + b') V'``, added to the layer's output before residual and norm. No per-architecture
code is needed: the layers are the linear calls between two attention calls, and the probing pass
verifies what they compute.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dptdr.errors import UnsupportedBackbone
from dptdr.model.prompt_rows import Activation, PromptCall

CurrentCall = Callable[[], PromptCall | None]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "mish": functional.mish,
    "relu2": lambda x: functional.relu(x).square(),
}


class LinearCall(NamedTuple):
    """One linear layer's call in a probing pass."""

    module: nn.Linear
    inputs: Tensor
    output: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FeedForwardLayer:
    """Up and down projections of one layer, and its activation.

    Args:
        up: The projection whose input is multiplied with the prompt's keys; layers may share it.
        linears: All linear layers involved: gate, up and down projections.
        gate: Output rows of ``up`` that pass through the activation: all of them, or one half if
            gate and up projections are fused.
    """

    up: nn.Linear
    down: nn.Linear
    linears: tuple[nn.Linear, ...]
    activation: Activation
    gate: slice

    def memory(self) -> tuple[Float[Tensor, "units dim"], Float[Tensor, " units"]]:
        """Return the layer's own keys and biases as float32 on the CPU."""
        keys = self.up.weight.detach()[self.gate].float().cpu()
        bias = self.up.bias
        own = keys.new_zeros(keys.shape[0]) if bias is None else bias.detach()[self.gate]
        return keys, own.float().cpu()


def find_layers(
    model: nn.Module, run: Callable[[Callable[[], None]], Any], *, layers: int, dim: int
) -> tuple[FeedForwardLayer, ...]:
    """Find a model's feed-forward layers by a probing forward pass.

    Args:
        run: Runs a forward pass over a padded batch and calls its argument after each attention.

    Returns:
        One entry per layer; layers that share modules have equal entries.

    Raises:
        UnsupportedBackbone: If a layer is neither a plain nor a gated feed-forward layer, for
            example a mixture of experts.
    """
    calls: list[list[LinearCall]] = [[]]
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output: calls[-1].append(
                LinearCall(module, inputs[0].detach(), output.detach())
            )
        )
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            run(lambda: calls.append([]))
    finally:
        for handle in handles:
            handle.remove()
    name = type(model).__name__
    if len(calls) != layers + 1:
        raise UnsupportedBackbone(
            f"{name}: expected {layers} attention calls, got {len(calls) - 1}; {_ALTERNATIVE}"
        )
    return tuple(
        _layer(found, dim=dim, name=f"{name}, layer {number}")
        for number, found in enumerate(calls[1:])
    )


_ALTERNATIVE = "train with ffn_length 0 (--ffn-length 0)"


def _layer(calls: Sequence[LinearCall], *, dim: int, name: str) -> FeedForwardLayer:
    """Identify a layer's up projection, down projection and activation."""
    # The first call is attention's output projection.
    rest = list(calls[1:])
    place = next(
        (
            number
            for number, call in enumerate(rest)
            if number and call.module.out_features == dim and call.module.in_features != dim
        ),
        None,
    )
    if place is None:
        raise UnsupportedBackbone(
            f"{name}: expected up and down projections after attention, got linear layers "
            f"{[(c.module.in_features, c.module.out_features) for c in calls]} (inputs, outputs), "
            f"which do not support feed-forward rows; {_ALTERNATIVE}"
        )
    ups, down = rest[:place], rest[place]
    first = ups[0]
    if first.inputs.dim() != 3 or first.inputs.shape != (*down.output.shape[:2], dim):
        raise UnsupportedBackbone(
            f"{name}: expected feed-forward input of shape (texts, tokens, {dim}), got "
            f"{tuple(first.inputs.shape)}; a mixture of experts does not support feed-forward "
            f"rows; {_ALTERNATIVE}"
        )
    if len(ups) <= 2 and all(torch.equal(call.inputs, first.inputs) for call in ups):
        for call in ups:
            found = _explain(call, [c for c in ups if c is not call], target=down.inputs)
            if found is not None:
                activation, gate = found
                return FeedForwardLayer(
                    up=call.module,
                    down=down.module,
                    linears=tuple(c.module for c in (*ups, down)),
                    activation=activation,
                    gate=gate,
                )
    raise UnsupportedBackbone(
        f"{name}: expected a feed-forward layer of the form act(up) or act(gate) * up with one of "
        f"{', '.join(_ACTIVATIONS)}, got another one; {_ALTERNATIVE}"
    )


def _explain(
    gate: LinearCall, others: Sequence[LinearCall], *, target: Tensor
) -> tuple[Activation, slice] | None:
    """Find the activation and the slice of the gate that reproduce the target."""
    whole = slice(None)
    candidates: list[tuple[slice, Tensor | None]]
    if others:
        candidates = [(whole, others[0].output)]
    elif gate.output.shape == target.shape:
        candidates = [(whole, None)]
    else:
        half = gate.output.shape[-1] // 2
        lower, upper = slice(0, half), slice(half, 2 * half)
        candidates = [(lower, gate.output[..., upper]), (upper, gate.output[..., lower])]
    for part, factor in candidates:
        for activation in _ACTIVATIONS.values():
            made = activation(gate.output[..., part])
            made = made if factor is None else made * factor
            if made.shape == target.shape and torch.allclose(made, target, rtol=1e-3, atol=1e-5):
                return activation, part
    return None


class FeedForwardHooks:
    """Hooks that add the current prompt's rows to each feed-forward layer's output.

    Args:
        layers: As returned by :func:`find_layers`.
        current: Returns this thread's current :class:`PromptCall`.
    """

    def __init__(self, layers: tuple[FeedForwardLayer, ...], current: CurrentCall) -> None:
        self.layers = layers
        self._current = current
        # Deep-copying a bound model copies its hooks too.
        for layer in layers:
            for hooks in (layer.up._forward_pre_hooks, layer.down._forward_hooks):
                for key, hook in list(hooks.items()):
                    if isinstance(getattr(hook, "__self__", None), FeedForwardHooks):
                        del hooks[key]
        ups = {id(layer.up): layer.up for layer in layers}.values()
        downs = {id(layer.down): layer.down for layer in layers}.values()
        self._handles = [module.register_forward_pre_hook(self._keep_inputs) for module in ups]
        self._handles += [module.register_forward_hook(self._add) for module in downs]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _keep_inputs(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        call = self._current()
        if call is not None and call.has_feed_forward:
            call.inputs = inputs[0]

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        del module, inputs
        call = self._current()
        if call is None or not call.has_feed_forward or call.inputs is None:
            return None
        # The preceding attention call has already advanced the counter.
        layer = call.layer - 1
        states, call.inputs = call.inputs, None
        return call.add_feed_forward(
            layer, states=states, output=output, activation=self.layers[layer].activation
        )
