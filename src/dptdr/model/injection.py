"""Attach a prompt to a model: find its layers by one forward pass and check that it reaches them.

No per-architecture code: a model either uses the transformers attention registry, or computes
attention with torch calls that can be intercepted. Any other model is rejected.
"""

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dptdr.errors import UnsupportedBackbone
from dptdr.model import attention
from dptdr.model.feed_forward import FeedForwardHooks, FeedForwardLayer, find_layers
from dptdr.model.interception import InterceptedAttention
from dptdr.model.prompt_rows import AttentionRows, FeedForwardRows, PromptCall

Route = Literal["registry", "interception"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Dimensions of a prompt's rows for a model."""

    layers: int
    heads: int
    head_dim: int


class _Active(threading.local):
    """The prompt call and route of this thread, for feed-forward hooks and recomputed blocks."""

    call: PromptCall | None = None
    route: Route = "registry"


_ACTIVE = _Active()


def _active_call() -> PromptCall | None:
    return _ACTIVE.call


class Injection:
    """A model whose attention layers accept prompts.

    Args:
        model: A Hugging Face encoder; switched to ``dptdr`` attention if it uses the registry.

    Raises:
        UnsupportedBackbone: If a prompt does not provably reach every layer.
    """

    def __init__(self, model: nn.Module) -> None:
        attention.register()
        self.model = model
        self._checkpointing = False
        self._feed_forward: FeedForwardHooks | None = None
        with _refusing(model):
            self.route: Route = _choose_route(model)
            self.geometry = _probe(model, route=self.route)
            _prove_effect(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Another process, to which the model was sent, may not know this attention.
        attention.register()
        self.__dict__.update(state)

    def __call__(self, call: PromptCall, **inputs: Any) -> Any:
        """Run the model's forward pass with a prompt.

        Args:
            call: The prompt rows; without any, this is the bare model.
        """
        if call.has_feed_forward:
            self.feed_forward_layers()
        call.layer, call.depth = 0, self.geometry.layers
        with _activated(call, route=self.route):
            output = self._run(call, inputs)
        if call.has_rows and call.layer != self.geometry.layers:
            # Some architectures switch attention by text length.
            raise UnsupportedBackbone(
                f"{type(self.model).__name__}: the prompt reached {call.layer} of "
                f"{self.geometry.layers} layers in this forward pass; deep prompts do not support "
                "this architecture for texts of this length"
            )
        return output

    def _run(self, call: PromptCall, inputs: dict[str, Any]) -> Any:
        if self.route == "registry":
            return self.model(**inputs, **{attention.KEYWORD: call})
        if not (call.has_rows or call.observer):
            return self.model(**inputs)
        with InterceptedAttention(call):
            return self.model(**inputs)

    def feed_forward_layers(self) -> tuple[FeedForwardLayer, ...]:
        """Attach the feed-forward hooks once, and check that rows reach every layer.

        Raises:
            UnsupportedBackbone: If they do not; attention rows alone still work.
        """
        if self._feed_forward is None:
            # The check needs gradients, even when called in inference mode.
            with _refusing(self.model), torch.inference_mode(mode=False):
                layers = find_layers(
                    self.model, self._run_probe, layers=self.geometry.layers, dim=_dim(self.model)
                )
                # Hooks stay on the modules: attaching them twice would add the rows twice.
                self._feed_forward = FeedForwardHooks(layers, _active_call)
                try:
                    _prove_feed_forward(self)
                except BaseException:
                    self._feed_forward.remove()
                    self._feed_forward = None
                    raise
        return self._feed_forward.layers

    def linear_layers(self) -> dict[str, list[str]]:
        """Return the names of all blocks' linear layers, under ``feed-forward`` and ``attention``.

        Raises:
            UnsupportedBackbone: If the feed-forward layers cannot be identified.
        """
        inside = {id(m) for layer in self.feed_forward_layers() for m in layer.linears}
        blocks = {id(m) for block in _blocks(self.model) for m in block.modules()}
        found: dict[str, list[str]] = {"feed-forward": [], "attention": []}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and id(module) in blocks:
                found["feed-forward" if id(module) in inside else "attention"].append(name)
        return found

    def _run_probe(self, after_attention: Callable[[], None]) -> None:
        call = PromptCall(observer=lambda *_: after_attention())
        with _activated(call, route=self.route):
            self._run(call, _probe_inputs(self.model))

    def enable_checkpointing(self) -> None:
        """Recompute each block in the backward pass instead of storing its activations.

        Unlike transformers' own checkpointing, this also works for architectures without it (MPNet,
        ALBERT) and in eval mode, and reruns each block with the original prompt and layer number.

        Raises:
            UnsupportedBackbone: If the model has no list of blocks.
        """
        if self._checkpointing:
            return
        for block in _blocks(self.model):
            # As a bound method, it follows its block when the model is deep-copied.
            forward = types.MethodType(_checkpointed_forward, block)
            block.forward = forward
        self._checkpointing = True


@contextlib.contextmanager
def _activated(call: PromptCall, *, route: Route) -> Iterator[None]:
    before = (_ACTIVE.call, _ACTIVE.route)
    _ACTIVE.call, _ACTIVE.route = call, route
    try:
        yield
    finally:
        _ACTIVE.call, _ACTIVE.route = before


def _checkpointed_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a block's forward so that the backward pass reruns it with the same prompt call."""
    forward = functools.partial(type(block).forward, block)
    call, route = _ACTIVE.call, _ACTIVE.route
    if call is None or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    layer = call.layer
    first = True

    def again(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if first:
            first = False
            return forward(*args, **kwargs)
        after = call.layer
        call.layer = layer
        try:
            with _activated(call, route=route):
                if route == "registry":
                    return forward(*args, **kwargs)
                with InterceptedAttention(call):
                    return forward(*args, **kwargs)
        finally:
            call.layer = after

    return checkpoint(again, *args, use_reentrant=False, **kwargs)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks: the members of the largest outermost module list."""
    total = sum(p.numel() for p in model.parameters())
    best: list[nn.Module] = []
    most = 0
    inside: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or id(module) in inside:
            continue
        inside.update(id(m) for m in module.modules())
        size = sum(p.numel() for p in module.parameters())
        if size > most:
            best, most = list(module), size
    if not best or total == 0:
        raise UnsupportedBackbone(
            f"{type(model).__name__}: gradient checkpointing needs a list of blocks, which this "
            "model lacks; train without it"
        )
    return best


def _expected_layers(model: Any) -> int:
    config = model.config
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", None)
    if not isinstance(layers, int):
        raise UnsupportedBackbone(
            f"{type(model).__name__}: expected the number of layers (num_hidden_layers) in the "
            f"configuration, got {layers!r}"
        )
    # ALBERT may run several attention layers per configured layer.
    return layers * int(getattr(config, "inner_group_num", None) or 1)


def _choose_route(model: Any) -> Route:
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise UnsupportedBackbone(f"{name}: expected a transformers encoder (PreTrainedModel)")
    if getattr(model.config, "attention_type", None) == "block_sparse":
        # BigBird silently and permanently switches to full attention on the first short text.
        raise UnsupportedBackbone(
            f"{name}: deep prompts do not support block-sparse attention; set attention_type to "
            "'original_full' in the encoder's configuration"
        )
    if not _set_attention(model, attention.NAME):
        return _intercepted(model)
    seen: list[str] = []
    call = PromptCall(observer=lambda *_: seen.append("layer"))
    with torch.no_grad(), contextlib.suppress(TypeError):
        model(**_probe_inputs(model), **{attention.KEYWORD: call})
    return "registry" if seen else _intercepted(model)


def _intercepted(model: Any) -> Route:
    # Interception sees plain matrix products only; a fused kernel would hide them.
    _set_attention(model, "eager")
    return "interception"


def _set_attention(model: Any, name: str) -> bool:
    """Try to set a model's attention function; return true on success."""
    with quiet_transformers():
        try:
            model.set_attn_implementation(name)
        except (ValueError, NotImplementedError, ImportError):
            return False
    return True


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and loading reports."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    # Two texts of different lengths, so that the probe exercises masks.
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 7]], device=device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def _probe(model: nn.Module, *, route: Route) -> Geometry:
    """Number the attention layers in call order, requiring exactly one call per layer."""
    shapes: list[tuple[int, int]] = []

    def observe(layer: int, query: Tensor, key: Tensor, *_: Any) -> None:
        del layer, query
        shapes.append((key.shape[1], key.shape[3]))

    for module in model.modules():
        if hasattr(module, attention.LAYERS_ATTRIBUTE):
            delattr(module, attention.LAYERS_ATTRIBUTE)
    call = PromptCall(observer=observe, modules=[])
    with torch.no_grad():
        if route == "registry":
            model(**_probe_inputs(model), **{attention.KEYWORD: call})
        else:
            with InterceptedAttention(call):
                model(**_probe_inputs(model))
    expected = _expected_layers(model)
    if len(shapes) != expected or len(set(shapes)) != 1:
        raise UnsupportedBackbone(
            f"{type(model).__name__}: expected one attention call for each of {expected} layers, "
            f"all of one shape, got {len(shapes)} calls with (heads, head_dim) in "
            f"{sorted(set(shapes))}; deep prompts do not support this architecture"
        )
    _number_modules(call.modules or [])
    heads, head_dim = shapes[0]
    return Geometry(layers=expected, heads=heads, head_dim=head_dim)


@contextlib.contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    """Turn any failure of a probing pass into ``UnsupportedBackbone``."""
    try:
        yield
    except UnsupportedBackbone:
        raise
    except Exception as error:
        raise UnsupportedBackbone(
            f"{type(model).__name__}: a probing forward pass on token ids and mask failed "
            f"({type(error).__name__}: {error}); deep prompts do not support this architecture"
        ) from error


def _number_modules(modules: list[nn.Module]) -> None:
    """Record on each attention module which layers it serves (ALBERT shares one)."""
    layers: dict[int, list[int]] = {}
    for number, module in enumerate(modules):
        layers.setdefault(id(module), []).append(number)
    for module in modules:
        setattr(module, attention.LAYERS_ATTRIBUTE, tuple(layers[id(module)]))


def _dim(model: Any) -> int:
    return int(getattr(model.config, "hidden_size", None) or model.config.d_model)


def _prove_feed_forward(injection: Injection) -> None:
    """Check that zero values change nothing, random rows do, and every layer gets a gradient."""
    name = type(injection.model).__name__
    layers, dim, rows = injection.geometry.layers, _dim(injection.model), 2
    generator = torch.Generator().manual_seed(0)
    parameter = next(injection.model.parameters())

    def draw(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator)
        return made.to(parameter.device, parameter.dtype).requires_grad_()

    keys, biases = draw(layers, 1, rows, dim), draw(layers, 1, rows)
    values = draw(layers, 1, rows, dim)
    weights = draw(4).detach()
    inputs = _probe_inputs(injection.model)

    def states(rows: FeedForwardRows | None) -> Tensor:
        output: Tensor = injection(PromptCall(feed_forward=rows), **inputs).last_hidden_state
        return output

    with torch.no_grad():
        base = states(None)
        if not torch.equal(states(FeedForwardRows(keys, biases, torch.zeros_like(values))), base):
            raise UnsupportedBackbone(
                f"{name}: feed-forward rows with zero values changed the output; train with "
                "ffn_length 0 (--ffn-length 0)"
            )
    with torch.enable_grad():
        output = states(FeedForwardRows(keys, biases, values))
        loss = (output.float() * weights.float()[None, :, None]).sin().sum()
        gradients = torch.autograd.grad(loss, (keys, biases, values), allow_unused=True)
    for kind, gradient in zip(("keys", "biases", "values"), gradients, strict=True):
        for layer in range(layers):
            if gradient is None or not gradient[layer].any():
                raise UnsupportedBackbone(
                    f"{name}: the {kind} of the feed-forward rows in layer {layer} get no "
                    "gradient, so they have no effect; train with ffn_length 0 (--ffn-length 0)"
                )


def _prove_effect(injection: Injection) -> None:
    """Check that random rows change the output and every layer's rows get a gradient."""
    geometry = injection.geometry
    name = type(injection.model).__name__
    generator = torch.Generator().manual_seed(0)
    shape = (geometry.layers, 1, geometry.heads, 2, geometry.head_dim)
    parameter = next(injection.model.parameters())
    rows = [
        torch.randn(shape, generator=generator).to(parameter.device).requires_grad_()
        for _ in range(2)
    ]
    weights = torch.randn(4, generator=generator).to(parameter.device)
    inputs = _probe_inputs(injection.model)
    with torch.no_grad():
        bare = injection(PromptCall(), **inputs).last_hidden_state
    with torch.enable_grad():
        prompt = AttentionRows(rows[0], rows[1])
        output = injection(PromptCall(prompt), **inputs).last_hidden_state
        if torch.equal(output.detach(), bare):
            raise UnsupportedBackbone(
                f"{name}: prompts have no effect; a random prompt did not change the output"
            )
        loss = (output.float() * weights[None, :, None]).sin().sum()
        gradients = torch.autograd.grad(loss, rows, allow_unused=True)
    for kind, gradient in zip(("keys", "values"), gradients, strict=True):
        for layer in range(geometry.layers):
            if gradient is None or not gradient[layer].any():
                raise UnsupportedBackbone(
                    f"{name}: the prompt's {kind} in layer {layer} get no gradient, so the prompt "
                    "does not reach that layer"
                )
