"""``dptdr import``: convert checkpoints from other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dptdr.cli.common import Json, write_result
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Folder of the checkpoint: the authors' saved model (or the "
            "folder of its query_model and "
            "passage_model), or a PEFT prefix-tuning adapter.",
        ),
    ],
    format: Annotated[
        Literal["dptdr-authors", "peft"], typer.Option(help="Format of the checkpoint.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write. dptdr-authors: OUT/backbone and OUT/task; peft: the task bundle."
        ),
    ],
    backbone: Annotated[
        str | None, typer.Option(help="peft: the encoder. Default: as named in the adapter.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="dptdr-authors: folder of the tokenizer, if the checkpoint has none."),
    ] = None,
    max_query_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum query length in tokens; 32 in the authors' MS MARCO recipe."
        ),
    ] = 32,
    max_passage_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum passage length in tokens; 128 in the authors' MS MARCO recipe."
        ),
    ] = 128,
    json: Json = None,
) -> None:
    """Import a deep prompt trained by another program.

    Token positions remain shifted by the prompt length, as in training.
    """
    try_outputs(json)
    try_outputs(out, folders=True)
    if format == "peft" and tokenizer is not None:
        raise ConfigError(
            "--tokenizer applies only to dptdr-authors; a PEFT adapter uses its encoder's tokenizer"
        )
    if format == "dptdr-authors" and backbone is not None:
        raise ConfigError(
            "--backbone applies only to peft; the authors' checkpoint includes its own"
        )
    from dptdr.model.encoder import Limits
    from dptdr.model.imports.authors import import_authors
    from dptdr.model.imports.peft import import_peft

    limits = Limits(max_query_tokens=max_query_tokens, max_passage_tokens=max_passage_tokens)
    if format == "peft":
        done = import_peft(source, out, backbone=backbone, limits=limits)
    else:
        done = import_authors(source, out, limits=limits, tokenizer=tokenizer)
    settings = done.manifest.settings
    said = (
        f"{done.task}: {settings['sharing']} prompt of {settings['prompt_length']} rows, "
        f"{done.manifest.trained_parameters:,} numbers, {done.task_bytes / 1e6:.2f} MB (checkpoint "
        f"{done.checkpoint_bytes / 1e6:.1f} MB), on the backbone {done.backbone}\n"
        f"next: dptdr evaluate DATA --task {done.task}"
    )
    facts = {
        "task": str(done.task),
        "backbone": done.backbone,
        "settings": settings,
        "checkpoint_bytes": done.checkpoint_bytes,
        "task_bytes": done.task_bytes,
    }
    write_result(json, facts, said=said)
