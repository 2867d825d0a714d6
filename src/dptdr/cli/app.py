"""The list of commands. Each command lives in a module of its own and imports torch only inside."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import typer

from dptdr.io.progress import current_phase

_SETTINGS = {"help_option_names": ["-h", "--help"]}

COMMANDS: dict[str, str] = {
    "quickstart": "dptdr.cli.quickstart",
    "train": "dptdr.cli.train",
    "select": "dptdr.cli.select",
    "pretrain": "dptdr.cli.pretrain",
    "encode": "dptdr.cli.encode",
    "index": "dptdr.cli.index",
    "search": "dptdr.cli.search",
    "evaluate": "dptdr.cli.evaluate",
    "compare": "dptdr.cli.compare",
    "mine": "dptdr.cli.mine",
    "serve": "dptdr.cli.serve",
    "import": "dptdr.cli.importing",
    "export-peft": "dptdr.cli.export_peft",
    "export": "dptdr.cli.export",
}
"""Command name to the module that holds a function ``command``."""

GROUPS: dict[str, str] = {"data": "dptdr.cli.data"}
"""Group name to the module that holds a typer ``app`` with sub-commands."""


def _print_version(value: bool | None) -> None:
    if value:
        from dptdr import __version__

        typer.echo(__version__)
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the whole command tree."""
    app = typer.Typer(
        name="dptdr",
        help="One frozen text encoder, any number of retrieval services.",
        no_args_is_help=True,
        context_settings=_SETTINGS,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def _options(
        version: bool | None = typer.Option(
            None, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        del version

    for name, module in COMMANDS.items():
        command = importlib.import_module(module).command
        app.command(name, context_settings=_SETTINGS)(_ending(command, name=name))
    for name, module in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
        listed = importlib.import_module(module).app
        for command in listed.registered_commands:
            whole = _ending(command.callback, name=f"{name} {command.name}")
            group.command(command.name, context_settings=_SETTINGS)(whole)
        app.add_typer(group, name=name, help=listed.info.help, context_settings=_SETTINGS)
    return app


class Stopped(Exception):
    """A command was interrupted; the message says which, and in which piece of work."""


class PipeClosed(Exception):
    """Whoever read the output has gone."""


def _ending(command: Callable[..., None], *, name: str) -> Callable[..., None]:
    """Let a command end as shells expect; typer would end it without a word, or with code 1."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            phase = current_phase()
            raise Stopped(f"dptdr {name}" + (f" ({phase})" if phase else "")) from None
        except BrokenPipeError:
            raise PipeClosed from None

    return run
