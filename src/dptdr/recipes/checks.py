"""Checks of a stage's settings beyond their types: what each command itself would refuse."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from dptdr.config.methods import DEFAULT_CONFIGS, METHOD_NAMES, config_from
from dptdr.config.pretraining import PretrainingConfig, pretraining_config
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError
from dptdr.mining.settings import check_sources, parse_source


def check_stage(do: str, settings: dict[str, Any]) -> list[str]:
    """Return what the stage's command would refuse, one line each.

    Args:
        do: The stage's kind.
        settings: Its settings, of the right types.

    Returns:
        The problems, none if all is well.
    """
    check = _CHECKS.get(do)
    return [] if check is None else check(settings)


def _train(settings: dict[str, Any]) -> list[str]:
    method = settings.get("method", "deep-prompt")
    if method not in METHOD_NAMES:
        return [f"method: expected one of {', '.join(METHOD_NAMES)}, got '{method}'"]
    hints = get_type_hints(TrainingConfig)
    known = {key: value for key, value in settings.items() if key in hints}
    found = []
    for key, value in list(known.items()):
        choices = get_args(hints[key])
        if isinstance(value, str) and choices and value not in choices:
            found.append(f"{key}: expected one of {', '.join(choices)}, got '{value}'")
            del known[key]
    known = {key: float(v) if hints[key] is float else v for key, v in known.items()}
    if "matryoshka" in known:
        known["matryoshka"] = tuple(known["matryoshka"])
    found += TrainingConfig(**known).problems()
    own = {item.name for item in fields(DEFAULT_CONFIGS[method])}
    try:
        config_from(method, {key: value for key, value in settings.items() if key in own})
    except ConfigError as error:
        found.append(str(error))
    of_others = {item.name for kind in DEFAULT_CONFIGS.values() for item in fields(kind)} - own
    found += [
        f"{key}: has no effect with method '{method}'" for key in settings if key in of_others
    ]
    return found


def _pretrain(settings: dict[str, Any]) -> list[str]:
    hints = get_type_hints(PretrainingConfig)
    known = {
        key: float(value) if hints[key] is float else value
        for key, value in settings.items()
        if key in hints
    }
    objectives = [name.strip() for name in str(known.pop("objectives", "")).split(",")]
    known["objectives"] = [name for name in objectives if name]
    try:
        pretraining_config(known)
    except ConfigError as error:
        return str(error).removeprefix("pretraining settings: ").split("; ")
    return []


def _mine(settings: dict[str, Any]) -> list[str]:
    found = []
    sources = []
    for text in settings.get("source", []):
        try:
            sources.append(
                parse_source(
                    text, depth=settings.get("depth", 200), quota=settings.get("quota", 30)
                )
            )
        except ConfigError as error:
            found.append(str(error))
    try:
        check_sources(sources)
    except ConfigError as error:
        found.append(str(error))
    return found


def _evaluate(settings: dict[str, Any]) -> list[str]:
    if "protocol" in settings:
        needed = ["qrels", "run", *(["passages"] if settings["protocol"] == "nq" else [])]
        return [f"{key}: is missing for the protocol" for key in needed if key not in settings]
    given = [key for key in ("task", "backbone", "bm25", "run") if settings.get(key)]
    # A task may lie on a backbone that is named as well.
    found = [] if len(given) == 1 else [f"expected one of task, backbone, bm25, run, got {given}"]
    return found if "data" in settings else [*found, "data: is missing"]


def _one_encoder(settings: dict[str, Any]) -> list[str]:
    if settings.get("task") or settings.get("backbone"):
        return []
    return ["expected task or backbone, got neither"]


def _search(settings: dict[str, Any]) -> list[str]:
    missing = [] if "queries" in settings else ["queries: is missing"]
    return missing + _one_encoder(settings)


_CHECKS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "train": _train,
    "pretrain": _pretrain,
    "mine": _mine,
    "evaluate": _evaluate,
    "encode": _one_encoder,
    "search": _search,
}
