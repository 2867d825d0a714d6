"""Settings of the tuning methods, as they stand in task bundles."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from dptdr.errors import ConfigError

MethodName = Literal["deep-prompt", "shallow-prompt", "lora", "bitfit", "full"]
METHOD_NAMES: tuple[MethodName, ...] = ("deep-prompt", "shallow-prompt", "lora", "bitfit", "full")
Sharing = Literal["tied", "untied", "query-only"]
PromptAttention = Literal["joint", "added"]
LoraTargets = Literal["attention", "feed-forward", "all"]
PositionPolicy = Literal["unshifted", "shifted"]
Initialisation = Literal["tokens", "random", "task", "identity"]

FEW_QUERIES_OFFSET = 4.0
"""Start offset of a prompt that is trained on few queries; see docs/what-makes-prompts-work.md."""


@dataclass(frozen=True, kw_only=True)
class DeepPromptConfig:
    """Settings of a deep prompt that are stored with it.

    Args:
        prompt_length: Attention rows per layer and side; 0 leaves attention as it is.
        ffn_length: Feed-forward rows per layer and side; 0 is the paper's prompt. ``None`` takes
            as many as fit into 2 % of the encoder's parameters, 80 at most.
        sharing: ``tied``: queries and passages share one prompt; ``untied``: one each;
            ``query-only``: passages are encoded by the bare backbone.
        attention: ``joint``: one softmax over prompt and tokens (prefix tuning); ``added``: the
            prompt has its own softmax and is added to the attention output.
        initialisation: ``tokens``: keys and values of real tokens of the task's texts; ``random``:
            normal with ``random_scale``; ``task``: another task's prompt; ``identity``: starts
            exactly at the backbone's vectors (tokens' keys, zero values; needs ``added``).
        start_offset: How far below a real token's the logits of rows that start from tokens lie,
            for the mean query of each layer and head; 0 starts as real tokens do. Higher starts
            nearer to the backbone, which helps few queries and hinders where much is to be learned.
            Only under ``joint`` attention.
        random_scale: Standard deviation of the random start.
        dropout: Share of prompt numbers set to 0 in each training pass.
        position: ``unshifted``, or ``shifted``: token positions move by the prompt's length, as
            with a generation cache (the authors' checkpoints).
        reparametrisation: Width of the MLP that produces the rows while training, 0 for none; it
            is folded into the rows when the prompt is saved.
    """

    prompt_length: int = 16
    ffn_length: int | None = None
    sharing: Sharing = "tied"
    attention: PromptAttention = "joint"
    initialisation: Initialisation = "tokens"
    start_offset: float = 0.0
    random_scale: float = 0.02
    dropout: float = 0.0
    position: PositionPolicy = "unshifted"
    reparametrisation: int = 0


@dataclass(frozen=True, kw_only=True)
class ShallowPromptConfig:
    """Settings of a shallow prompt: rows before the word embeddings of the first layer only.

    Args:
        prompt_length: Rows.
        sharing: As for deep prompts.
    """

    prompt_length: int = 16
    sharing: Sharing = "tied"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of low-rank adaptation, done by peft.

    Args:
        rank: Rank of each update.
        targets: Which linear layers: ``attention`` (query and value projections),
            ``feed-forward``, or ``all`` of the encoder's layers.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Dropout before the update, in training.
    """

    rank: int = 8
    targets: LoraTargets = "attention"
    alpha: int = 16
    dropout: float = 0.0


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
    kind = DEFAULT_CONFIGS[method]
    hints = get_type_hints(kind)
    wrong = [f"{key}: unknown setting" for key in sorted(set(settings) - set(hints))]
    for key, hint in hints.items():
        allowed = get_args(hint) if get_origin(hint) is Literal else ()
        if allowed and key in settings and settings[key] not in allowed:
            wrong.append(f"{key}: expected one of {', '.join(allowed)}, got '{settings[key]}'")
    if wrong:
        raise ConfigError(f"method '{name}': " + "; ".join(wrong))
    return method, kind(**settings)
