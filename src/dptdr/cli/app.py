"""The command tree. Each command has its own module, which imports torch lazily."""

import functools
import importlib
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from dptdr.cli.options import with_flags
from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import read_json
from dptdr.io.outputs import refuse_nested, refuse_replacing
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
"""Command name to the module with its function ``command``."""

GROUPS: dict[str, str] = {"data": "dptdr.cli.data"}
"""Group name to the module with its typer ``app``."""

FORMER: dict[str, dict[str, str]] = {
    "mine": {
        "--depth": "--range-max",
        "--quota": "--num-negatives",
        "--drop-above": "--max-score",
        "--margin": "--absolute-margin",
    },
    "encode": {"--precision": "--weights"},
    "evaluate": {"--workers": "--threads"},
    "index": {"--kind": "--index-type"},
}
"""Command name to former option names, which are still accepted."""


_MACHINE = "Machine and output"
_MACHINE_OPTIONS = (
    *("batch_size", "cache", "device", "dtype", "html", "json", "overwrite", "png", "report"),
    *("tensorboard", "threads", "track", "weights"),
)
_OUTPUTS = ("out", "json", "run_out", "report", "html", "png", "tensorboard", "cache")
_PANELS: dict[str, dict[str, tuple[str, ...]]] = {}
"""Command name to the panels of its help and the options in each."""


class Command(TyperCommand):
    """A command with grouped help; it also accepts old option names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments, translating former option names."""
        former = FORMER.get(self.name or "", {})

        def present(word: str) -> str:
            flag, equals, value = word.partition("=")
            return former.get(flag, flag) + equals + value

        return super().parse_args(ctx, [present(word) for word in args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, the most important first, then panel by panel."""
        chosen: dict[str | None, str] = dict.fromkeys(_MACHINE_OPTIONS, _MACHINE)
        for panel, names in _PANELS.get(self.name or "", {}).items():
            chosen |= dict.fromkeys(names, panel)
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            heading = getattr(parameter, "rich_help_panel", None) or chosen.get(parameter.name)
            if parameter.param_type_name == "argument":
                heading = "Arguments"
            if record is not None:
                # Derived options show their range after the default only.
                words = (record[0].replace(" range>", ">"), record[1])
                panels.setdefault(heading or "Options", []).append(words)
        # Machine options come last.
        panels |= {_MACHINE: panels.pop(_MACHINE, [])}
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def _print_version(value: bool | None) -> None:
    if value:
        from dptdr import __version__

        typer.echo(__version__)
        raise typer.Exit


def build_app() -> typer.Typer:
    """Build the whole command tree."""
    app = typer.Typer(
        name="dptdr",
        help="One frozen text encoder, any number of retrieval services.",
        no_args_is_help=True,
        context_settings=_SETTINGS,
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

    for name, where in COMMANDS.items():
        module = importlib.import_module(where)
        _PANELS[name] = getattr(module, "PANELS", {})
        _add(app, name, module.command, whole=name)
    for name, where in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
        module = importlib.import_module(where)
        _PANELS.update(module.PANELS)
        listed = module.app
        for command in listed.registered_commands:
            _add(group, command.name, command.callback, whole=f"{name} {command.name}")
        app.add_typer(group, name=name, help=listed.info.help, context_settings=_SETTINGS)
    return app


def _add(app: typer.Typer, name: str, command: Callable[..., None], *, whole: str) -> None:
    app.command(name, cls=Command, context_settings=_SETTINGS)(
        _with_exit_codes(command, name=whole)
    )


_RESUMABLE = ("train", "pretrain", "mine", "encode", "index", "quickstart")
_RESUMABLE_WITHOUT_OVERWRITE = ("train", "pretrain", "mine")
"""Commands that leave unfinished work beside the old output; the others restore the old vectors."""


class Stopped(Exception):
    """An interrupted command; the message names the command and the phase, and how to go on."""


class PipeClosed(Exception):
    """The reader of the output closed the pipe."""


def _with_exit_codes(command: Callable[..., None], *, name: str) -> Callable[..., None]:
    """Make a command exit following shell conventions, which typer does not."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                _check_working_folder()
                _refuse_replacing(options)
                command(*arguments, **options)
            except KeyboardInterrupt:
                phase = current_phase()
                where = f" ({phase})" if phase else ""
                advice = _advice(name, overwrite=bool(options.get("overwrite")))
                raise Stopped(f"dptdr {name}{where}; {advice}") from None
            except BrokenPipeError:
                raise PipeClosed from None
            except ConfigError as error:
                raise ConfigError(with_flags(str(error), dict.fromkeys(options))) from None

    return run


def _advice(name: str, *, overwrite: bool) -> str:
    """Return advice on how to continue after an interruption."""
    if name not in (_RESUMABLE_WITHOUT_OVERWRITE if overwrite else _RESUMABLE):
        return "rerun the command to start again"
    how = " without --overwrite" if overwrite else ""
    return f"completed work is kept, rerun the command{how} to resume"


def _check_working_folder() -> None:
    """Reject a deleted working folder, whose errors name neither the folder nor the reason."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise DataError(
            "this folder, in which the command was started, no longer exists; change to another "
            "one",
            path=os.environ.get("PWD"),
        ) from None


def _refuse_replacing(options: dict[str, Any]) -> None:
    """Reject outputs that would overwrite the command's inputs."""
    paths = {name: value for name, value in options.items() if isinstance(value, Path)}
    outputs = [paths[name] for name in _OUTPUTS if name in paths and str(paths[name]) != "-"]
    given: list[Any] = [value for name, value in paths.items() if name not in _OUTPUTS]
    given += [options.get(name) for name in ("backbone", "source", "teacher")]
    given += [each for value in options.values() if isinstance(value, list) for each in value]
    # A source such as task:FOLDER,top=9.
    given += [text.partition(":")[2].partition(",")[0] for text in given if isinstance(text, str)]
    refuse_replacing(outputs, [*given, *map(_backbone_of, given)])
    for one, other in itertools.combinations(outputs, 2):
        refuse_nested(one, other)


def _backbone_of(task: Any) -> str | None:
    """Return the backbone named in a task's folder, or None if it is not a task."""
    try:
        named = read_json(Path(task) / "task.json")["backbone"]
    except (DataError, TypeError, KeyError):
        return None
    return named if isinstance(named, str) else None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)
