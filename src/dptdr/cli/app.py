"""The list of commands. Each command lives in a module of its own and imports torch only inside."""

import importlib

import typer

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
        app.command(name)(importlib.import_module(module).command)
    for name, module in GROUPS.items():
        app.add_typer(importlib.import_module(module).app, name=name)
    return app
