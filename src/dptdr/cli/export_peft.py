"""``dptdr export-peft``: export a deep-prompt task as PEFT prefix-tuning adapters."""

from pathlib import Path
from typing import Annotated

import typer

from dptdr.io.outputs import try_outputs


def command(
    task: Annotated[Path, typer.Argument(help="Task bundle of a deep prompt.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; untied tasks give OUT/query and OUT/passage.")
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="Location of the task's backbone. Default: as stored in the task."),
    ] = None,
    accept_shift: Annotated[
        bool,
        typer.Option(
            "--accept-shift",
            help="Export a task trained without shifted positions; PEFT shifts them, so "
            "its vectors will differ.",
        ),
    ] = False,
) -> None:
    """Export a deep prompt for use with PEFT (joint attention; positions shifted there)."""
    try_outputs(out, folders=True)
    from dptdr.model.backbone import Backbone
    from dptdr.model.bundle import read_manifest
    from dptdr.model.imports.peft import export_peft

    manifest = read_manifest(task)
    encoder = Backbone.load(backbone or manifest.backbone)
    for folder in export_peft(task, out, backbone=encoder, accept_shift=accept_shift):
        typer.echo(f"{folder}: load it with peft.PeftModel.from_pretrained(encoder, FOLDER)")
    if manifest.settings.get("sharing") == "query-only":
        typer.echo("use it for queries only; encode passages without it")
