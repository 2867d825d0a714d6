"""User requests: settings by name, sorted into config classes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dptdr.config.methods import (
    DEFAULT_CONFIGS,
    METHOD_NAMES,
    DeepPromptConfig,
    MethodConfig,
    MethodName,
)
from dptdr.config.pretraining import (
    FUSED,
    OBJECTIVE_NAMES,
    OBJECTIVES_OF,
    PretrainingConfig,
    fused_defaults,
)
from dptdr.config.settings import declared, from_values
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError

_INITIALISED = "initialisation"
_FFN_RATE = "ffn_learning_rate"


class TrainingRequest(NamedTuple):
    """A training request.

    Attributes:
        given: Names of explicitly given settings; others may be adapted to the data.
    """

    config: TrainingConfig
    method: MethodName
    method_config: MethodConfig
    given: frozenset[str]


class PretrainingRequest(NamedTuple):
    """A pretraining request; ``prompt`` is set to train only a prompt."""

    config: PretrainingConfig
    prompt: DeepPromptConfig | None


def training_request(
    method: str, values: Mapping[str, Any], *, from_task: bool = False, negatives: bool = True
) -> TrainingRequest:
    """Split settings into training and method settings.

    Args:
        negatives: There may be mined negatives or teacher scores.

    Raises:
        ConfigError: If the method is unknown, or a setting is unknown, invalid, would have no
            effect, or belongs to another method.
    """
    if method not in METHOD_NAMES:
        raise ConfigError(f"method: expected one of {', '.join(METHOD_NAMES)}, got '{method}'")
    name: MethodName = method
    of_training = declared(TrainingConfig)
    own = declared(DEFAULT_CONFIGS[name])
    misplaced = {n for n in values if n not in of_training and n not in own}
    owners = {n: [m for m in METHOD_NAMES if n in declared(DEFAULT_CONFIGS[m])] for n in misplaced}
    wrong = [
        f"{n}: expected method {', '.join(owners[n])}, got '{method}'"
        for n in sorted(misplaced)
        if owners[n]
    ]
    if _FFN_RATE in values and method != "deep-prompt":
        wrong.append(f"{_FFN_RATE}: expected method deep-prompt, got '{method}'")
    if from_task:
        wrong += _from_task_faults(method, values)
    if method == "deep-prompt":
        wrong += _idle_of_prompt(values, from_task=from_task)
    wrong += _idle(
        values,
        "distillation_weight",
        when=values.get("distillation", "none") == "none",
        why="without distillation",
    )
    wrong += _idle(values, "negatives_per_query", when=not negatives, why="without negatives")
    if wrong:
        raise ConfigError("; ".join(wrong))
    settings = {n: value for n, value in values.items() if n in own}
    if from_task:
        settings[_INITIALISED] = "task"
    if "rank" in settings:
        settings.setdefault("alpha", 2 * settings["rank"])
    training = {n: value for n, value in values.items() if n not in own}
    return TrainingRequest(
        from_values(TrainingConfig, training, what="training settings"),
        name,
        from_values(DEFAULT_CONFIGS[name], settings, what=f"settings of method '{name}'"),
        frozenset(values),
    )


def pretraining_request(
    values: Mapping[str, Any],
    *,
    prompt_only: bool = False,
    from_task: bool = False,
    keep_head: bool = False,
    force: bool = False,
) -> PretrainingRequest:
    """Split settings into pretraining and prompt settings; the latter need ``prompt_only``.

    Args:
        force: Write a prompt even if its measure is worse.

    Raises:
        ConfigError: If a setting is unknown, invalid, or would have no effect.
    """
    of_prompt = {
        n: value
        for n, value in values.items()
        if n in declared(DeepPromptConfig) and n not in declared(PretrainingConfig)
    }
    wrong = [] if prompt_only else _prompt_faults(values, of_prompt, from_task=from_task)
    if force and not prompt_only:
        wrong.append("force: only applies with prompt_only")
    if keep_head and prompt_only:
        wrong.append("keep_head: does not apply with prompt_only, which writes no backbone")
    if from_task:
        wrong += _from_task_faults("deep-prompt", values)
    if prompt_only:
        wrong += _idle_of_prompt(values, from_task=from_task)
    wrong += _idle_of_objectives(values, prompt_only=prompt_only)
    if wrong:
        raise ConfigError("; ".join(wrong))
    if from_task:
        of_prompt[_INITIALISED] = "task"
    rest = {n: value for n, value in values.items() if n not in of_prompt}
    if prompt_only:
        rest.setdefault("objectives", FUSED)
        if tuple(rest["objectives"]) == FUSED:
            rest = fused_defaults(rest) | rest
            # With feed-forward rows only, training starts exactly at the backbone.
            of_prompt = of_prompt if from_task else {"prompt_length": 0} | of_prompt
    config = from_values(PretrainingConfig, rest, what="pretraining settings")
    if not prompt_only:
        return PretrainingRequest(config, None)
    what = "settings of the prompt"
    return PretrainingRequest(config, from_values(DeepPromptConfig, of_prompt, what=what))


def _prompt_faults(
    values: Mapping[str, Any], of_prompt: Mapping[str, Any], *, from_task: bool
) -> list[str]:
    """Return the settings that need ``prompt_only``."""
    extra = sorted(of_prompt) + (["from_task"] if from_task else [])
    found = [f"{n}: only applies with prompt_only" for n in extra]
    if FUSED[0] in (values.get("objectives") or ()):
        found.append("objectives: fused only applies with prompt_only")
    return found


def _idle_of_prompt(values: Mapping[str, Any], *, from_task: bool) -> list[str]:
    """Return the settings of a deep prompt that have no effect beside the others."""
    start = values.get(_INITIALISED, "tokens")
    found = []
    if start == "task" and not from_task:
        found.append(f"{_INITIALISED}: 'task' needs from_task")
    found += _idle(
        values,
        "random_scale",
        when=start != "random" or from_task,
        why="without random initialisation",
    )
    found += _idle(
        values, _FFN_RATE, when=values.get("ffn_length") == 0, why="without feed-forward rows"
    )
    for name in ("position", _INITIALISED, "reparametrisation"):
        idle = values.get("prompt_length") == 0
        found += _idle(values, name, when=idle, why="without attention rows")
    return found


def _idle_of_objectives(values: Mapping[str, Any], *, prompt_only: bool) -> list[str]:
    """Return the settings that have no effect with the objectives."""
    default = FUSED if prompt_only else tuple(n for n in OBJECTIVE_NAMES if n not in FUSED)
    chosen = values.get("objectives") or default
    if not isinstance(chosen, tuple | list) or not set(chosen) <= set(OBJECTIVE_NAMES):
        return []
    found = []
    for name, objectives in OBJECTIVES_OF.items():
        idle = not set(objectives) & set(chosen)
        found += _idle(values, name, when=idle, why=f"with objectives {', '.join(chosen)}")
    return found


def _idle(values: Mapping[str, Any], name: str, *, when: bool, why: str) -> list[str]:
    return [f"{name}: has no effect {why}"] if when and name in values else []


def _from_task_faults(method: str, values: Mapping[str, Any]) -> list[str]:
    if method != "deep-prompt":
        return [f"from_task: expected method deep-prompt, got '{method}'"]
    if _INITIALISED in values:
        return [f"{_INITIALISED}: expected none with from_task, got '{values[_INITIALISED]}'"]
    return []
