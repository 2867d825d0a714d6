"""What several commands have in common: options with one meaning, and where results go."""

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

Device = Annotated[
    str, typer.Option(help="Torch device: auto (cuda, mps or cpu), cpu, cuda, cuda:1, mps.")
]
Threads = Annotated[
    int | None, typer.Option(min=0, help="Processor threads. Default: one for each core.")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result to this file; '-' is standard output."),
]


def write_result(json: Path | None, result: Any, *, said: str) -> None:
    """Print what was reached, and write it as JSON where asked; with ``-`` print the JSON alone.

    Args:
        json: The option ``--json``.
        result: What it writes.
        said: What is printed.
    """
    if json is not None and str(json) == "-":
        options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY
        typer.echo(orjson.dumps(result, option=options).decode())
        typer.echo(said, err=True)
        return
    typer.echo(said)
    if json is not None:
        from dptdr.io.atomic import write_json

        write_json(json, result)
