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
    """Settings of a deep prompt, stored in its bundle."""

    prompt_length: Annotated[
        int, Setting("Attention rows per layer and side; 0 leaves attention unchanged.")
    ] = 16
    ffn_length: Annotated[
        int | None,
        Setting(
            "Feed-forward rows per layer and side; 0 for the paper's prompt. Default: as many as "
            "fit in 2 % of the encoder's parameters, at most 80."
        ),
    ] = None
    prompt_layers: Annotated[
        int | None,
        Setting(
            "Number of upper layers with rows; the backward pass stops below them. Default: all. "
            "A task with rows in only some layers cannot be served.",
            min=1,
        ),
    ] = None
    sharing: Annotated[
        Sharing,
        Setting(
            "For deep and shallow prompts. tied: queries and passages share a prompt; untied: each "
            "side has its own; query-only: passages are encoded by the bare backbone, so that "
            "tasks can share an index."
        ),
    ] = "tied"
    initialisation: Annotated[
        Initialisation,
        Setting(
            "tokens: keys and values of tokens in the task's texts; random; task: see --from-task."
        ),
    ] = "tokens"
    random_scale: Annotated[float, Setting("Standard deviation of random initialisation.")] = 0.02
    dropout: Annotated[
        float,
        Setting(
            "For deep prompts and LoRA: dropout probability of prompt entries, or of LoRA's "
            "inputs, in training.",
            was=("prompt_dropout",),
        ),
    ] = 0.0
    position: Annotated[
        PositionPolicy,
        Setting(
            "unshifted, or shifted: token positions are shifted by the prompt's length, as in the "
            "authors' checkpoints."
        ),
    ] = "unshifted"
    reparametrisation: Annotated[
        int,
        Setting("Hidden size of an MLP added to the prompt in training; 0 for none.", min=0),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ShallowPromptConfig:
    """Settings of a shallow prompt: rows before the word embeddings, in the first layer only."""

    prompt_length: Annotated[int, Setting("Prompt rows.")] = 16
    sharing: Annotated[Sharing, Setting("As for deep prompts.")] = "tied"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of low-rank adaptation, implemented by peft."""

    rank: Annotated[int, Setting("Rank of LoRA's updates.", min=1, was=("lora_rank",))] = 8
    targets: Annotated[
        LoraTargets,
        Setting(
            "Linear layers adapted by LoRA: attention (query and value), feed-forward, or all.",
            given_as="lora_targets",
        ),
    ] = "attention"
    alpha: Annotated[
        int, Setting("LoRA's updates are scaled by alpha / rank. Default: twice --rank.")
    ] = 16
    dropout: Annotated[float, Setting("Dropout before the update in training.")] = 0.0


@dataclass(frozen=True, kw_only=True)
class EmptyConfig:
    """Empty settings, for BitFit and full fine-tuning."""


MethodConfig: TypeAlias = DeepPromptConfig | ShallowPromptConfig | LoraConfig | EmptyConfig

DEFAULT_CONFIGS: dict[MethodName, type[MethodConfig]] = {
    "deep-prompt": DeepPromptConfig,
    "shallow-prompt": ShallowPromptConfig,
    "lora": LoraConfig,
    "bitfit": EmptyConfig,
    "full": EmptyConfig,
}


def settings_of(config: MethodConfig) -> dict[str, Any]:
    """Convert a method's settings to plain values."""
    return asdict(config)


def config_from(name: str, settings: Mapping[str, Any]) -> tuple[MethodName, MethodConfig]:
    """Restore a method's name and settings from plain values.

    Raises:
        ConfigError: If the method or a setting is unknown.
    """
    if name not in METHOD_NAMES:
        raise ConfigError(f"method '{name}': expected one of {', '.join(METHOD_NAMES)}")
    method: MethodName = name
    values = dict(settings)
    # Written by earlier versions.
    if method == "deep-prompt" and (attention := values.pop("attention", "joint")) != "joint":
        raise ConfigError(
            f"method '{name}', attention: expected 'joint', got {attention!r}; such prompts need "
            "version 0.1.0 or earlier, so retrain the task"
        )
    if method == "deep-prompt":
        # Only affected initialisation in earlier versions, not the saved rows.
        values.pop("start_offset", None)
    return method, from_values(DEFAULT_CONFIGS[method], values, what=f"method '{name}'")
