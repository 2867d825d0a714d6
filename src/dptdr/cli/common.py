"""Shared options, and output of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dptdr.errors import ConfigError

if TYPE_CHECKING:
    from dptdr.model import Encoder

Device = Annotated[
    str, typer.Option(help="Torch device: auto (cuda, mps or cpu), cpu, cuda, cuda:1, mps.")
]
Dtype = Annotated[
    str, typer.Option(help="Dtype of the backbone's weights: float32, bfloat16 or float16.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one per core.")]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum texts per batch. Default: by their lengths."),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result to this file; '-' is standard output."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Delete OUT and any unfinished work, and start over."),
]
KeepIdentical = Annotated[
    bool,
    typer.Option("--keep-identical", help="Let a query that is also a passage retrieve itself."),
]


def reject_unused_options(
    context: typer.Context,
    *,
    without: Mapping[str, Sequence[str]] | None = None,
    beside: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Reject options that have no effect.

    Args:
        without: Option to the options that require it.
        beside: Option to the options that it disables.

    Raises:
        ConfigError: Lists all such options.
    """
    problems = [
        f"--{option.replace('_', '-')} has no effect {word} --{key.replace('_', '-')}"
        for word, rules in (("without", without or {}), ("with", beside or {}))
        for key, options in rules.items()
        if (context.params[key] in (None, False)) == (word == "without")
        for option in options
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"
    ]
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; omit it")


def write_result(json: Path | None, result: Any, *, said: str) -> None:
    """Print a result, and write it as JSON if requested; with ``-``, print only the JSON.

    Args:
        json: The option ``--json``.
        result: The JSON values.
        said: The text to print.
    """
    if json is not None and str(json) == "-":
        options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY
        # Such as grades.
        options |= orjson.OPT_NON_STR_KEYS
        typer.echo(orjson.dumps(result, option=options).decode())
        typer.echo(said, err=True)
        return
    typer.echo(said)
    if json is not None:
        from dptdr.io.atomic import write_json

        write_json(json, result)


def start() -> None:
    """Import torch and its dependents as a visible phase, because it takes seconds."""
    from dptdr.io.progress import progress

    with progress("start"):
        import dptdr.api.indexing  # noqa: F401


def load_encoder(
    task: Path | None, backbone: str | None, *, device: str = "auto", dtype: str = "float32"
) -> "Encoder":
    """Load the encoder named by ``--task`` and ``--backbone``."""
    from dptdr.api.task import encoder_of
    from dptdr.io.progress import progress

    with progress("load the encoder"):
        return encoder_of(task=task, backbone=backbone, device=device, dtype=dtype)
