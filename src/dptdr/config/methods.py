"""Settings of the tuning methods, as stored in task bundles."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeAlias

from dptdr.config.settings import Setting, from_values
from dptdr.errors import ConfigError

MethodName = Literal["deep-prompt", "shallow-prompt", "lora", "bitfit", "full"]
METHOD_NAMES: tuple[MethodName, ...] = ("deep-prompt", "shallow-prompt", "lora", "bitfit", "full")
Sharing = Literal["tied", "untied", "query-only"]
StorageDtype = Literal["float32", "float16", "bfloat16"]
LoraTargets = Literal["attention", "feed-forward", "all"]
PositionPolicy = Literal["unshifted", "shifted"]
Initialisation = Literal["tokens", "random", "task"]


@dataclass(frozen=True, kw_only=True)
class DeepPromptConfig:
    """Settings of a deep prompt that are stored with it."""

    prompt_length: Annotated[
        int, Setting("Attention rows per layer and side; 0 leaves attention as it is.")
    ] = 16
    ffn_length: Annotated[
        int | None,
        Setting(
            "Feed-forward rows per layer and side; 0 is the paper's prompt. Default: as many as "
            "fit into 2 % of the encoder's parameters, 80 at most."
        ),
    ] = None
    prompt_layers: Annotated[
        int | None,
        Setting(
            "Number of upper layers that carry rows; the backward pass stops below them. Default: "
            "all. Fewer cannot be served.",
            min=1,
        ),
    ] = None
    sharing: Annotated[
        Sharing,
        Setting(
            "tied: queries and passages share the prompt; untied: separate ones; query-only: "
            "passages are encoded by the bare backbone, so that tasks can share one index."
        ),
    ] = "tied"
    initialisation: Annotated[
        Initialisation,
        Setting(
            "tokens: keys and values of real tokens of the task's texts; random; task: see "
            "--from-task."
        ),
    ] = "tokens"
    random_scale: Annotated[float, Setting("Standard deviation of a random start.")] = 0.02
    dropout: Annotated[
        float,
        Setting(
            "Share of prompt numbers (or of LoRA's inputs) dropped in each training pass.",
            was=("prompt_dropout",),
        ),
    ] = 0.0
    position: Annotated[
        PositionPolicy,
        Setting(
            "unshifted, or shifted: token positions move by the prompt's length, as in the "
            "authors' checkpoints."
        ),
    ] = "unshifted"
    reparametrisation: Annotated[
        int,
        Setting("Width of the MLP that makes the prompt while training; 0 is none.", min=0),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ShallowPromptConfig:
    """Settings of a shallow prompt: rows before the word embeddings of the first layer only."""

    prompt_length: Annotated[int, Setting("Prompt rows.")] = 16
    sharing: Annotated[Sharing, Setting("As for deep prompts.")] = "tied"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of low-rank adaptation, done by peft."""

    rank: Annotated[int, Setting("Rank of LoRA's updates.", min=1, was=("lora_rank",))] = 8
    targets: Annotated[
        LoraTargets,
        Setting(
            "Linear layers that LoRA updates: attention (query and value), feed-forward, or all.",
            given_as="lora_targets",
        ),
    ] = "attention"
    alpha: Annotated[
        int, Setting("LoRA's updates are scaled by alpha / rank; twice --rank where that is given.")
    ] = 16
    dropout: Annotated[float, Setting("Dropout before the update, in training.")] = 0.0


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """BitFit and full fine-tuning have no settings."""


MethodConfig: TypeAlias = DeepPromptConfig | ShallowPromptConfig | LoraConfig | NoConfig

DEFAULT_CONFIGS: dict[MethodName, type[MethodConfig]] = {
    "deep-prompt": DeepPromptConfig,
    "shallow-prompt": ShallowPromptConfig,
    "lora": LoraConfig,
    "bitfit": NoConfig,
    "full": NoConfig,
}


def settings_of(config: MethodConfig) -> dict[str, Any]:
    """Return a method's settings as plain values."""
    return asdict(config)


def config_from(name: str, settings: Mapping[str, Any]) -> tuple[MethodName, MethodConfig]:
    """Return the method name and its settings from plain values.

    Raises:
        ConfigError: If the method or a setting is unknown.
    """
    if name not in METHOD_NAMES:
        raise ConfigError(f"method '{name}': expected one of {', '.join(METHOD_NAMES)}")
    method: MethodName = name
    values = dict(settings)
    # Settings written by former versions hold it.
    if method == "deep-prompt" and (attention := values.pop("attention", "joint")) != "joint":
        raise ConfigError(
            f"method '{name}', attention: expected 'joint', got {attention!r}; version 0.1.0 is "
            "the last one that reads such prompts: train the task again"
        )
    if method == "deep-prompt":
        # It shaped the start of prompts of former versions; the saved rows are what they are.
        values.pop("start_offset", None)
    return method, from_values(DEFAULT_CONFIGS[method], values, what=f"method '{name}'")
