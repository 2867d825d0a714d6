"""The options of dptdr's own commands, read off their functions, for recipes."""

import importlib
import inspect
import types
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.main import get_command
from typer.models import ArgumentInfo, OptionInfo

from dptdr.recipes.options import Option, Options, Type

_TYPES: dict[Any, Type] = {int: "int", float: "float", bool: "flag", str: "text", Path: "text"}
_INTERRUPTED = 130
_MODULES = {"import": "importing"}


def run_command(words: tuple[str, ...], arguments: Sequence[str]) -> int:
    """Run one command in this process; errors are raised, not printed.

    Args:
        words: The words that call it, such as ``("data", "convert")``.
        arguments: All further words.

    Returns:
        The exit code that the command asked for, 0 if all went well.

    Raises:
        KeyboardInterrupt: If it was interrupted.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(words[-1])(_function(words))
    code = get_command(app).main(list(arguments), prog_name="dptdr", standalone_mode=False)
    # Typer turns an interruption into the exit code that shells know it by.
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


@cache
def options_of(words: tuple[str, ...]) -> Options:
    """Return what a command takes, arguments first in their order.

    Args:
        words: The words that call it.

    Returns:
        Its options by the names that recipes use: an option's as it is written.
    """
    function = _function(words)
    hints = get_type_hints(function, include_extras=True)
    arguments: dict[str, Option] = {}
    options: dict[str, Option] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is not Annotated:
            # Such as the context, which typer itself gives.
            continue
        kind, info = hint.__origin__, hint.__metadata__[0]
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            arguments[parameter.name] = _option(kind, info, words=(), required=required)
            continue
        assert isinstance(info, OptionInfo)
        spelled = _words(parameter.name, info, flag=kind is bool)
        name = spelled[0].removeprefix("--").replace("-", "_")
        options[name] = _option(kind, info, words=spelled, required=required)
    return arguments | options


def _function(words: tuple[str, ...]) -> Callable[..., Any]:
    module = importlib.import_module(f"dptdr.cli.{_MODULES.get(words[0], words[0])}")
    if len(words) == 1:
        function: Callable[..., Any] = module.command
        return function
    named: dict[str, Callable[..., Any]] = {
        command.name: command.callback for command in module.app.registered_commands
    }
    return named[words[1]]


def _words(name: str, info: OptionInfo, *, flag: bool) -> tuple[str, ...]:
    # Inside Annotated, typer takes the first word for a default.
    words = (info.default, *(info.param_decls or ()))
    given = [word for word in words if isinstance(word, str) and word.startswith("--")]
    if given:
        return tuple(given[0].split("/"))
    word = name.replace("_", "-")
    return (f"--{word}", f"--no-{word}") if flag else (f"--{word}",)


def _option(
    kind: Any, info: OptionInfo | ArgumentInfo, *, words: tuple[str, ...], required: bool
) -> Option:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    repeated = get_origin(kind) is list
    if repeated:
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Option(
        type="text" if choices else _TYPES[kind],
        words=words,
        repeated=repeated,
        required=required,
        choices=choices,
        least=info.min,
        most=info.max,
    )
