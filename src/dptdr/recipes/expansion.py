"""From a recipe's tables to single stages: lists, defaults, variations and mining rounds."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dptdr.recipes.kinds import KINDS, ROUNDS

NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
CURRENT = "@current"
_ROUNDS_KEYS = ("do", "for", "rounds", "data", "backbone", "start", "mine", "train")


@dataclass(kw_only=True)
class Tables:
    """A recipe's tables, still unchecked, and the problems found so far."""

    lists: dict[str, list[Any]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    vary: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def expand(tables: Tables) -> dict[str, dict[str, Any]]:
    """Return every single stage: name to ``do`` and its settings.

    ``for = ["set", "length"]`` makes one stage for each pair of the lists' values; their names are
    appended to the stage's name, and ``{set}`` in any text is replaced. ``do = "rounds"`` becomes a
    chain of mine and train stages.

    Args:
        tables: The recipe's tables; problems are added to it.

    Returns:
        The stages in the order of the file.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.stages.items():
        if not isinstance(table, dict):
            tables.problems.append(f"stage '{name}': expected a table, got {table!r}")
            continue
        for own, chosen, settings in _each(name, table, tables):
            for single, stage in _rounds(own, settings, tables.problems):
                if single in found:
                    tables.problems.append(f"stage '{single}' stands twice")
                if not NAME.fullmatch(single):
                    tables.problems.append(
                        f"stage '{single}': expected a name of lower-case letters, digits, '.' "
                        "and '-'"
                    )
                found[single] = _with_defaults(stage, chosen, tables)
    return found


def _each(
    name: str, table: Mapping[str, Any], tables: Tables
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Yield name, chosen values and settings for each combination of the lists."""
    over = table.get("for", [])
    asked = over if isinstance(over, dict) else {key: None for key in over}
    values = {}
    for key, some in asked.items():
        whole = tables.lists.get(key)
        if whole is None:
            tables.problems.append(f"stage '{name}': no list '{key}' in [lists]")
            return
        values[key] = whole if some is None else [value for value in whole if value in some]
        if some is not None and len(values[key]) != len(some):
            tables.problems.append(f"stage '{name}': list '{key}' lacks some of {some}")
    for chosen in itertools.product(*values.values()):
        own = "-".join([name, *(str(value) for value in chosen)])
        settings = replaced(dict(table), dict(zip(values, chosen, strict=True)))
        settings.pop("for", None)
        yield own, chosen, settings


def replaced(value: Any, names: Mapping[str, Any]) -> Any:
    """Put list values into texts; a text that is nothing but ``{name}`` takes the value itself.

    Args:
        value: Any TOML value.
        names: Name to value.

    Returns:
        The same with names replaced.
    """
    if isinstance(value, dict):
        return {key: replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, names) for item in value]
    if isinstance(value, str):
        for name, chosen in names.items():
            if value == f"{{{name}}}":
                return chosen
            value = value.replace(f"{{{name}}}", str(chosen))
    return value


def _with_defaults(
    stage: dict[str, Any], chosen: tuple[Any, ...], tables: Tables
) -> dict[str, Any]:
    kind = str(stage.get("do"))
    merged = dict(tables.defaults.get(kind, {}))
    for value in chosen:
        merged |= tables.vary.get(str(value), {}).get(kind, {})
    return merged | stage


def _rounds(
    name: str, table: dict[str, Any], problems: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the stage; mining rounds give ``NAME-mine-1, NAME-train-1, ...``, the last ``NAME``."""
    if table.get("do") != ROUNDS:
        yield name, table
        return
    where = f"stage '{name}'"
    problems.extend(
        f"{where}: unknown setting '{key}' of rounds; there are {', '.join(_ROUNDS_KEYS)}"
        for key in table
        if key not in _ROUNDS_KEYS
    )
    rounds, mine, train = table.get("rounds"), table.get("mine"), table.get("train")
    if not isinstance(rounds, int) or rounds < 1:
        problems.append(f"{where}: expected a number of rounds of at least 1, got {rounds!r}")
        return
    if not isinstance(mine, dict) or not isinstance(train, dict):
        problems.append(f"{where}: expected [stages.{name}.mine] and [stages.{name}.train]")
        return
    start = table.get("start", "")
    if not isinstance(start, str) or (start and not start.startswith(("task:", "backbone:"))):
        problems.append(f"{where}: expected start = 'task:...' or 'backbone:...', got {start!r}")
        return
    shared = {key: table[key] for key in ("data",) if key in table}
    trained = shared | {key: table[key] for key in ("backbone",) if key in table}
    current = start
    for number in range(1, rounds + 1):
        last = name if number == rounds else f"{name}-train-{number}"
        source = [_now(text, current) for text in mine.get("source", []) if _now(text, current)]
        yield f"{name}-mine-{number}", {"do": "mine", **shared, **mine, "source": source}
        negatives = f"@{name}-mine-{number}"
        settings = {"do": "train", **trained, **train, "negatives": negatives}
        previous = settings.get("from_task")
        if previous == CURRENT:
            settings["from_task"] = current.removeprefix("task:")
            if not current.startswith("task:"):
                del settings["from_task"]
        yield last, settings
        current = f"task:@{last}"


def _now(text: Any, current: str) -> Any:
    """Return a source with the retriever of now in it; without any in the first round it falls."""
    if isinstance(text, str) and text.startswith(CURRENT):
        return current + text.removeprefix(CURRENT) if current else ""
    return text


def known_kinds() -> list[str]:
    """Return what ``do`` may be."""
    return [*KINDS, ROUNDS]
