"""Reading a recipe: all that is wrong with it is found before anything starts."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dptdr.errors import ConfigError, DataError
from dptdr.recipes.checks import check_stage
from dptdr.recipes.expansion import Tables, expand, known_kinds, replaced
from dptdr.recipes.kinds import GIVEN, KINDS, MACHINE_OPTIONS, TABLE
from dptdr.recipes.options import Options, unknown
from dptdr.recipes.recipe import (
    REFERENCE,
    Assumptions,
    Expected,
    Machine,
    Recipe,
    Reference,
    Stage,
    plain_settings,
)
from dptdr.recipes.table import check_table, table_cells

OptionsOf = Callable[[tuple[str, ...]], Options]
"""Gives the options of a command by its words."""

_TOP = (
    "name",
    "about",
    "work",
    "first",
    "machine",
    "assume",
    "vars",
    "lists",
    "defaults",
    "vary",
    "stages",
)
_META = ("do", "expect")


def read_recipe(
    path: Path,
    *,
    options_of: OptionsOf,
    changes: Sequence[str] = (),
    work: Path | None = None,
) -> Recipe:
    """Read and check a recipe; no other file is looked at.

    Args:
        path: The TOML file.
        options_of: Gives the options of a command.
        changes: ``key=value`` each, with a dotted key, such as ``defaults.train.steps=10``.
        work: Replaces the recipe's own work folder.

    Returns:
        The recipe, its stages in an order in which they can be run.

    Raises:
        DataError: If the file is missing or no TOML; names the line.
        ConfigError: With every problem of the recipe.
    """
    values = _toml(path)
    problems: list[str] = []
    for change in changes:
        _apply(values, change, problems)
    problems.extend(
        f"unknown table or key '{key}'; there are {', '.join(_TOP)}"
        for key in values
        if key not in _TOP
    )
    machine = plain_settings(Machine, values.get("machine", {}), where="machine", problems=problems)
    assume = plain_settings(
        Assumptions, values.get("assume", {}), where="assume", problems=problems
    )
    values = _with_vars(values, problems)
    singles = expand(_tables(values, problems))
    stages = {
        name: _stage(name, table, options_of=options_of, problems=problems)
        for name, table in singles.items()
    }
    known = {name: stage for name, stage in stages.items() if stage is not None}
    _check_references(known, set(singles), problems)
    first = values.get("first", [])
    if not isinstance(first, list) or any(name not in singles for name in first):
        problems.append(f"first: expected a list of stages, got {first!r}")
        first = []
    order = _ordered(known, problems, first=[name for name in first if name in known])
    if not singles:
        problems.append("expected at least one stage in [stages]")
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        count = f"{len(set(problems))} problem{'s' * (len(set(problems)) > 1)}"
        raise ConfigError(f"{path}: {count}, nothing was started:{lines}")
    name = str(values.get("name", path.stem))
    return Recipe(
        name=name,
        path=path,
        about=str(values.get("about", "")),
        work=work or Path(str(values.get("work", f"runs/{name}"))),
        machine=machine,
        assume=assume,
        stages=tuple(order),
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"expected a recipe in TOML: {error}", path=path) from None


def _apply(values: dict[str, Any], change: str, problems: list[str]) -> None:
    key, equals, text = change.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problems.append(f"--set {change}: expected key=value, such as defaults.train.steps=10")
        return
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = values
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            problems.append(f"--set {change}: '{part}' is no table")
            return
        table = inner
    table[parts[-1]] = value


def _with_vars(values: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Put the texts of ``[vars]`` wherever the recipe says ``{name}``."""
    names = values.get("vars", {})
    if not isinstance(names, dict) or any(isinstance(v, dict | list) for v in names.values()):
        problems.append("[vars]: expected a table of single values")
        return values
    return {key: replaced(value, names) for key, value in values.items() if key != "vars"}


def _tables(values: dict[str, Any], problems: list[str]) -> Tables:
    found: dict[str, dict[str, Any]] = {}
    for name in ("lists", "defaults", "vary", "stages"):
        table = values.get(name, {})
        if not isinstance(table, dict):
            problems.append(f"[{name}]: expected a table, got {table!r}")
            table = {}
        found[name] = table
    for name, items in found["lists"].items():
        if not isinstance(items, list) or not items:
            problems.append(f"[lists] {name}: expected a list of values, got {items!r}")
    for kind in found["defaults"]:
        if kind not in KINDS:
            problems.append(f"[defaults.{kind}]: {unknown(kind, known_kinds())}")
    listed = {str(v) for items in found["lists"].values() if isinstance(items, list) for v in items}
    problems.extend(
        f"[vary.{value}]: no list of [lists] holds '{value}'"
        for value in found["vary"]
        if value not in listed
    )
    return Tables(problems=problems, **found)


def _stage(
    name: str, table: dict[str, Any], *, options_of: OptionsOf, problems: list[str]
) -> Stage | None:
    do = table.get("do")
    if do not in KINDS:
        problems.append(
            f"stage '{name}': expected do = one of {', '.join(known_kinds())}, got {do!r}"
        )
        return None
    settings = {key: value for key, value in table.items() if key not in _META}
    expect = plain_settings(
        Expected, table.get("expect", {}), where=f"stages.{name}.expect", problems=problems
    )
    found = [] if do == TABLE else _problems(do, settings, options_of(KINDS[do].command))
    found += check_table(settings) if do == TABLE else []
    if not found:
        found += check_stage(do, settings)
    problems.extend(f"stage '{name}' ({do}): {problem}" for problem in found)
    return Stage(
        name=name,
        do=do,
        settings=settings,
        references=tuple(_references(_named_in(do, settings, broken=bool(found)))),
        expect=expect,
    )


def _problems(do: str, settings: dict[str, Any], options: Options) -> list[str]:
    own = KINDS[do].also.keys() | {KINDS[do].output_option}
    hidden = {*GIVEN, *MACHINE_OPTIONS, *own}
    allowed = [name for name in options if name not in hidden]
    found = []
    for name, value in settings.items():
        if name in hidden and name in options:
            found.append(f"{name}: is set by `dptdr run` or in [machine]")
        elif name not in options:
            found.append(f"{name}: {unknown(name, allowed)}")
        elif problem := options[name].problem(value):
            found.append(f"{name}: {problem}")
    found += [
        f"{name}: is missing" for name in allowed if options[name].required and name not in settings
    ]
    return found


def _named_in(do: str, settings: dict[str, Any], *, broken: bool) -> dict[str, Any]:
    """Return the settings whose texts may name stages; a table's reports stand for many."""
    if do != TABLE:
        return settings
    if broken:
        return {}
    return {"rows": [text for _, _, reports in table_cells(settings) for text in reports]}


def _references(settings: dict[str, Any]) -> list[Reference]:
    found = []
    for name, value in settings.items():
        for text in _texts(value):
            match = REFERENCE.match(text)
            if match:
                found.append(
                    Reference(
                        setting=name,
                        stage=match["stage"],
                        below=match["below"].removeprefix("/"),
                        kind=match["kind"].removesuffix(":"),
                    )
                )
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _check_references(stages: dict[str, Stage], names: set[str], problems: list[str]) -> None:
    for stage in stages.values():
        for reference in stage.references:
            where = f"stage '{stage.name}' ({stage.do}), {reference.setting}"
            if reference.stage not in names:
                near = unknown(reference.stage, sorted(names)).removeprefix("unknown setting")
                problems.append(f"{where}: no stage '{reference.stage}'{near}")
                continue
            other = stages.get(reference.stage)
            wanted = ("report",) if stage.do == TABLE else stage.kind.inputs.get(reference.setting)
            if other is None or reference.below or (wanted and other_role(other) in wanted):
                continue
            role = other_role(other)
            takes = " or ".join(wanted) if wanted else "no stage's output"
            problems.append(f"{where}: takes {takes}, '{reference.stage}' gives {role}")


def other_role(stage: Stage) -> str:
    """Return what a stage gives; a pretraining of a prompt alone gives a task."""
    if stage.do == "pretrain" and stage.settings.get("prompt_only"):
        return "task"
    return stage.kind.role


def _ordered(
    stages: dict[str, Stage], problems: list[str], *, first: Sequence[str] = ()
) -> list[Stage]:
    """Return some stages first, the others in the order of the file, each after what it needs."""
    order: list[Stage] = []
    done: set[str] = set()

    def visit(stage: Stage, above: tuple[str, ...]) -> None:
        if stage.name in above:
            circle = " -> ".join([*above[above.index(stage.name) :], stage.name])
            problems.append(f"stages need one another: {circle}")
            return
        if stage.name in done:
            return
        for reference in stage.references:
            if reference.stage in stages:
                visit(stages[reference.stage], (*above, stage.name))
        done.add(stage.name)
        order.append(stage)

    for stage in [*(stages[name] for name in first), *stages.values()]:
        visit(stage, ())
    return order
