"""Command-line options derived from config classes."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from dptdr.config.settings import Declared, declared
from dptdr.errors import ConfigError

MAIN = "Options"
"""Heading of the most important options."""

_EVALUATIONS = "evaluations"


def settings(
    panels: dict[type, str], *, first: Sequence[str] = (), shared: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for each field of the config classes.

    The command receives the given options as ``settings``, a mapping from field name to value.
    Former names become hidden options. A field shared by two classes becomes a single option.

    Args:
        panels: Config class to the heading of its options in the help.
        first: Fields listed above all headings.
        shared: Heading of options that several classes have; by default that of the first class.
    """
    fields: dict[str, tuple[Declared, str]] = {}
    for config, panel in panels.items():
        for name, field in declared(config).items():
            first_field, _ = fields.get(name, (field, panel))
            heading = shared if shared and name in fields else panel
            fields[name] = (first_field, MAIN if name in first else heading)
    fields = {name: fields[name] for name in [*first, *fields]}
    added = _options(fields)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            values = {option: given.pop(option) for option in added}
            try:
                command(**given, settings=_given(values, added, fields=fields))
            except ConfigError as error:
                flags = dict.fromkeys(given) | {
                    name: option for option, (name, _) in reversed(added.items())
                }
                raise ConfigError(with_flags(str(error), flags)) from None

        hints = get_type_hints(command, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            parameter.replace(annotation=hints[name], kind=keyword)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "settings"
        ]
        parameters += [
            inspect.Parameter(option, keyword, default=None, annotation=hint)
            for option, (_, hint) in added.items()
        ]
        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def _options(fields: dict[str, tuple[Declared, str]]) -> dict[str, tuple[str, Any]]:
    """Map option names, including former names, to field names and annotations."""
    added: dict[str, tuple[str, Any]] = {}
    for name, (field, panel) in fields.items():
        shown = field.setting.given_as or name
        added[shown] = (name, _option(field, shown, panel=panel))
        former = [*field.setting.was, *([name] if shown != name else [])]
        added |= {old: (name, _option(field, old, panel=None)) for old in former}
    if "eval_steps" in fields:
        hidden = typer.Option("--evaluations", hidden=True, help="Dev measures in a run.")
        added[_EVALUATIONS] = ("eval_steps", Annotated[int | None, hidden])
    return added


def _given(
    values: dict[str, Any],
    added: dict[str, tuple[str, Any]],
    *,
    fields: dict[str, tuple[Declared, str]],
) -> dict[str, Any]:
    """Collect the given settings by field name."""
    found: dict[str, Any] = {}
    for option, value in values.items():
        name, _ = added[option]
        field, _ = fields[name]
        if value is None or value == []:
            continue
        if name in found:
            raise ConfigError(f"{name}: given twice, also as --{option.replace('_', '-')}")
        if option == _EVALUATIONS:
            found[name] = 0.0 if value <= 1 else 1.0 / value
        else:
            found[name] = _value(field, value, option=option)
    return found


def _option(field: Declared, name: str, *, panel: str | None) -> Any:
    """Build the annotation of an option; former names are hidden."""
    flag = "--" + name.replace("_", "-")
    notes = "; ".join(filter(None, (_default_note(field, name), field.setting.range_note)))
    details: dict[str, Any] = {
        "help": field.setting.help + (f"  [{notes}]" if notes else ""),
        "hidden": panel is None,
        "rich_help_panel": panel,
        "show_default": False,
    }
    if field.type is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **details)]
    if field.repeated and not field.choices:
        return Annotated[list[int] | None, typer.Option(flag, **details)]
    if field.choices:
        return Annotated[
            str | None, typer.Option(flag, metavar=f"<{'|'.join(field.choices)}>", **details)
        ]
    if field.optional:
        # Parse as a string, because "none" is also a value.
        return Annotated[
            str | None, typer.Option(flag, metavar=f"<{field.type.__name__}>", **details)
        ]
    return Annotated[field.type | None, typer.Option(flag, **details)]


def _default_note(field: Declared, name: str) -> str:
    """Return the note on the default, or an empty string if the help text states it."""
    default = field.default
    if "efault: " in field.setting.help or (field.choices and not default):
        return ""
    if field.type is bool:
        shown = f"{'' if default else 'no-'}{name.replace('_', '-')}"
    else:
        # An option without a value of its own accepts the word "none".
        shown = "none" if default in (None, ()) else str(default)
    return f"default: {shown}"


def _value(field: Declared, value: Any, *, option: str) -> Any:
    if field.repeated and field.choices:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if field.optional and isinstance(value, str) and field.type is not str:
        if value == "none":
            return None
        try:
            value = field.type(value)
        except ValueError:
            raise ConfigError(
                f"--{option.replace('_', '-')}: expected {field.type.__name__} or none, "
                f"got '{value}'"
            ) from None
    return value


def with_flags(message: str, options: Mapping[str, str | None]) -> str:
    """Rewrite setting names in an error message as options, such as ``--batch-size: ...``.

    Args:
        options: Setting name to option name, if different.
    """
    for name, option in options.items():
        flag = "--" + (option or name).replace("_", "-")
        message = re.sub(rf"(?:^|(?<=; )|(?<=: )){name}(?=: )", flag, message)
    return message
