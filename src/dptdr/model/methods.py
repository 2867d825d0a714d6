"""Tuning methods: their common protocol, deep prompts, and a factory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.config.methods import (
    DEFAULT_CONFIGS,
    DeepPromptConfig,
    LoraConfig,
    MethodConfig,
    MethodName,
    ShallowPromptConfig,
)
from dptdr.errors import BundleError, ConfigError
from dptdr.model.backbone import Backbone, Side, Tokens
from dptdr.model.initialisation import initial_feed_forward_rows, token_rows
from dptdr.model.injection import Geometry
from dptdr.model.prompt import DeepPrompt, prompts_in, random_rows, saved_rows
from dptdr.model.prompt_rows import FeedForwardObserver, FeedForwardRows, Observer
from dptdr.model.shallow import ShallowPromptMethod
from dptdr.model.weights import (
    WeightsMethod,
    biases,
    lora_parameters,
    parameters_affecting_vectors,
)

BUDGET_SHARE = 0.02
"""Maximum size of a prompt of default length, as a fraction of the encoder's parameters."""

MAX_DEFAULT_FFN_LENGTH = 80
MAX_ROWS = 4096


@runtime_checkable
class Method(Protocol):
    """Interface of tuning methods for training, encoding and bundles."""

    name: MethodName
    backbone: Backbone
    base_fingerprint: str
    base_probe: tuple[float, ...]
    module: nn.Module

    @property
    def config(self) -> MethodConfig:
        """Settings of the method."""
        ...

    def vectors(
        self, tokens: Tokens, *, side: Side, observer: Observer | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one vector; gradients flow to the trainable parameters."""
        ...

    def changes(self, side: Side) -> bool:
        """Check whether this side's vectors differ from the bare backbone's."""
        ...

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the state to save."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load a saved state."""
        ...


class DeepPromptMethod:
    """Deep prompt tuning: trainable key and value rows in every layer of a frozen backbone.

    Args:
        backbone: The frozen encoder; it is not modified and may be shared.
        query_texts: Texts for token initialisation of the query prompt (and of tied prompts).
        rows: Initial rows by prompt name (``shared``, or ``query`` and ``passage``), instead of
            initialisation from texts.

    Raises:
        ConfigError: If the settings contradict each other.
    """

    name: MethodName = "deep-prompt"

    def __init__(
        self,
        backbone: Backbone,
        config: DeepPromptConfig,
        *,
        query_texts: Sequence[str] = (),
        passage_texts: Sequence[str] = (),
        rows: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        _check_deep_prompt(config)
        names = ("query", "passage") if config.sharing == "untied" else ("shared",)
        if config.ffn_length is None:
            if rows is None:
                chosen = default_ffn_length(backbone, config, sides=len(names))
            else:
                biases = [x for name, x in rows.items() if name.endswith(".ffn_biases")]
                chosen = biases[0].shape[1] if biases else 0
            config = replace(config, ffn_length=chosen)
        self.backbone = backbone
        self.config: DeepPromptConfig = config
        self.geometry = prompt_geometry(backbone, config)
        self.base_fingerprint = backbone.fingerprint
        self.base_probe = backbone.probe
        texts = {
            "query": list(query_texts),
            "passage": list(passage_texts),
            "shared": [*query_texts, *(() if config.sharing == "query-only" else passage_texts)],
        }
        prompts = {}
        for number, name in enumerate(names):
            start, feed_forward = _initial_rows(
                backbone, config, name=name, texts=texts[name], rows=rows, seed=seed + number
            )
            torch.manual_seed(seed + number)
            prompts[name] = DeepPrompt(
                start,
                feed_forward=feed_forward,
                dropout=config.dropout,
                reparametrisation=config.reparametrisation,
            )
        self.module: nn.Module = nn.ModuleDict(prompts).to(backbone.device)

    def prompt(self, side: Side) -> DeepPrompt | None:
        """Return a side's prompt; ``None`` for passages of a query-only task."""
        prompts: Any = self.module
        if self.config.sharing == "untied":
            found: DeepPrompt = prompts[side]
            return found
        if self.config.sharing == "query-only" and side == "passage":
            return None
        shared: DeepPrompt = prompts["shared"]
        return shared

    @property
    def max_tokens(self) -> int:
        """Longest text; shifted positions leave fewer for the text."""
        if self.config.position == "shifted":
            return self.backbone.max_tokens_shifted(self.config.prompt_length)
        return self.backbone.pooling.max_tokens

    def vectors(
        self,
        tokens: Tokens,
        *,
        side: Side,
        observer: Observer | None = None,
        feed_forward_observer: FeedForwardObserver | None = None,
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one vector."""
        prompt = self.prompt(side)
        shifted = prompt is not None and self.config.position == "shifted"
        shift = prompt.prompt_length if prompt is not None and shifted else 0
        return self.backbone.vectors(
            tokens,
            attention=None if prompt is None else prompt.attention(),
            feed_forward=None if prompt is None else prompt.feed_forward(),
            position_shift=shift,
            observer=observer,
            feed_forward_observer=feed_forward_observer,
        )

    def changes(self, side: Side) -> bool:
        """Check whether this side has a prompt."""
        return self.prompt(side) is not None

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the prompts' non-empty parameters by name."""
        return {n: p for n, p in self.module.named_parameters() if p.numel()}

    def state(self) -> dict[str, Tensor]:
        """Return each prompt's rows, including the MLP's output.

        Attention rows are under ``NAME``, ``[layers, 2, heads, prompt, head_dim]``, and
        feed-forward rows under ``NAME.ffn_keys``, ``NAME.ffn_biases`` and ``NAME.ffn_values``.
        """
        prompts: Any = self.module
        return {
            f"{name}.{part}" if part else name: tensor
            for name, prompt in prompts.items()
            for part, tensor in prompt.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load saved rows, dropping the reparametrisation: the saved rows include its output."""
        prompts: Any = self.module
        if prompts_in(state) != set(prompts):
            raise BundleError(
                f"expected prompts {sorted(prompts)}, got {sorted(prompts_in(state))} in the bundle"
            )
        for name in sorted(prompts):
            rows, feed_forward = saved_rows(
                state, name, geometry=self.geometry, dim=self.backbone.dim
            )
            prompts[name] = DeepPrompt(
                rows,
                feed_forward=feed_forward,
                dropout=self.config.dropout,
            ).to(self.backbone.device)


def _check_deep_prompt(config: DeepPromptConfig) -> None:
    for name in ("prompt_length", "ffn_length"):
        length = getattr(config, name)
        if length is not None and not 0 <= length <= MAX_ROWS:
            raise ConfigError(f"{name}: expected 0 to {MAX_ROWS} rows, got {length}")
    if config.prompt_length == 0 and config.ffn_length == 0:
        raise ConfigError(
            "prompt_length and ffn_length: expected at least one above 0, got 0 and 0"
        )
    if not 0.0 <= config.dropout < 1.0:
        raise ConfigError(f"dropout: expected a probability in [0, 1), got {config.dropout}")


def prompt_geometry(backbone: Backbone, config: DeepPromptConfig) -> Geometry:
    """Return the shape of a prompt's rows, for the upper layers or all of them.

    Raises:
        ConfigError: If ``prompt_layers`` exceeds the encoder's layers.
    """
    layers = backbone.geometry.layers
    wanted = layers if config.prompt_layers is None else config.prompt_layers
    if not 1 <= wanted <= layers:
        raise ConfigError(f"prompt_layers: expected 1 to {layers}, got {wanted}")
    return replace(backbone.geometry, layers=wanted)


def default_ffn_length(backbone: Backbone, config: DeepPromptConfig, *, sides: int) -> int:
    """Compute how many feed-forward rows fit the default parameter budget.

    Attention rows are taken from the budget first.

    Args:
        sides: Number of trained prompts, 2 if untied.

    Returns:
        Rows per layer, at most 80, and at least 1 if there are no attention rows.
    """
    geometry = prompt_geometry(backbone, config)
    attention = 2 * geometry.heads * geometry.head_dim * config.prompt_length
    budget = BUDGET_SHARE * backbone.parameter_count / (sides * geometry.layers) - attention
    fitting = int(budget / (2 * backbone.dim + 1))
    return max(0 if config.prompt_length else 1, min(MAX_DEFAULT_FFN_LENGTH, fitting))


def _initial_rows(
    backbone: Backbone,
    config: DeepPromptConfig,
    *,
    name: str,
    texts: Sequence[str],
    rows: Mapping[str, Tensor] | None,
    seed: int,
) -> tuple[Tensor, FeedForwardRows | None]:
    """Return initial attention and feed-forward rows."""
    if rows is not None:
        return _rows_of_task(backbone, config, name=name, rows=rows)
    ffn_length = config.ffn_length or 0
    feed_forward = (
        initial_feed_forward_rows(backbone, ffn_length=ffn_length, seed=seed)
        if ffn_length
        else None
    )
    length, layers = config.prompt_length, prompt_geometry(backbone, config).layers
    if feed_forward is not None:
        feed_forward = FeedForwardRows(*(part[-layers:] for part in feed_forward))
    if config.initialisation == "random" or not texts or not length:
        start = random_rows(
            backbone.geometry, prompt_length=length, scale=config.random_scale, seed=seed
        )
    else:
        side: Side = "passage" if name == "passage" else "query"
        start = token_rows(backbone, texts, prompt_length=length, side=side, seed=seed)
    return start[-layers:], feed_forward


def _rows_of_task(
    backbone: Backbone, config: DeepPromptConfig, *, name: str, rows: Mapping[str, Tensor]
) -> tuple[Tensor, FeedForwardRows | None]:
    """Return another task's rows, checking that their lengths match the settings."""
    held = prompts_in(rows)
    # A tied prompt can initialise an untied task: both sides start from the shared rows.
    source = next((n for n in (name, "shared", "query") if n in held), None)
    if source is None:
        raise ConfigError(f"expected a prompt '{name}' to start from, got {sorted(held)}")
    geometry = prompt_geometry(backbone, config)
    start, feed_forward = saved_rows(rows, source, geometry=geometry, dim=backbone.dim)
    if feed_forward is not None:
        # Check now: the first forward pass may be a trace, or without gradients.
        backbone.injection.feed_forward_layers()
    found = {
        "prompt_length": start.shape[3],
        "ffn_length": 0 if feed_forward is None else feed_forward.keys.shape[2],
    }
    for setting, length in found.items():
        wanted = getattr(config, setting)
        if length != wanted:
            raise ConfigError(
                f"{setting}: expected {length}, the length of the initial prompt, got {wanted}; "
                f"use --{setting.replace('_', '-')} {length}"
            )
    return start, feed_forward


class MethodFactory:
    """Builds tuning methods by name.

    Args:
        query_texts: Texts for token initialisation of deep prompts.
    """

    configs: ClassVar[dict[MethodName, type[MethodConfig]]] = DEFAULT_CONFIGS

    def __init__(
        self,
        *,
        query_texts: Sequence[str] = (),
        passage_texts: Sequence[str] = (),
        rows: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.query_texts = query_texts
        self.passage_texts = passage_texts
        self.rows = rows

    def build(
        self, name: MethodName, backbone: Backbone, config: MethodConfig, *, seed: int
    ) -> Method:
        """Build a method, ready to train or to load a saved state.

        Raises:
            ConfigError: If the settings belong to another method.
        """
        if not isinstance(config, self.configs[name]):
            expected = self.configs[name].__name__
            raise ConfigError(f"method '{name}': expected {expected}, got {config}")
        if isinstance(config, DeepPromptConfig):
            return DeepPromptMethod(
                backbone,
                config,
                query_texts=self.query_texts,
                passage_texts=self.passage_texts,
                rows=self.rows,
                seed=seed,
            )
        if isinstance(config, ShallowPromptConfig):
            return ShallowPromptMethod(backbone, config, seed=seed)
        if isinstance(config, LoraConfig):
            return WeightsMethod(
                backbone, config, name=name, choose=lora_parameters(backbone, config, seed=seed)
            )
        choose = biases if name == "bitfit" else parameters_affecting_vectors
        return WeightsMethod(backbone, config, name=name, choose=choose)
