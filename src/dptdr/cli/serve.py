"""``dptdr serve``: serve many tasks on one encoder over HTTP."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dptdr.cli.options import settings as options_of
from dptdr.errors import ConfigError
from dptdr.serving.settings import ServerLimits


@options_of({ServerLimits: "Limits"})
def command(
    settings: dict[str, Any],
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Task bundles, as FOLDER or NAME=FOLDER. Default: the backbone alone."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Encoder: `minilm`, a folder or a hub name. Default: the first task's."),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="Index folder, as FOLDER or TASK=FOLDER; repeatable. Without TASK, used for every "
            "task whose vectors it holds."
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Build BM25 in memory for indexes without one.")
    ] = False,
    cross_encoder: Annotated[
        str | None, typer.Option(help="Cross-encoder for /rerank: name or folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free port.")
    ] = 8000,
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder with the bundles and indexes that requests may add.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for the catalogue and copies of bundles. Default: temporary."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="TOML file with API keys. Default: an open server.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name accepted by an open server, besides its addresses and "
            "localhost; repeatable."
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            help="Folder from `dptdr export --int8`: run the int8 model with ONNX Runtime; "
            "export.json records the loss in nDCG@10."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", hidden=True, help="Implied by --onnx.")] = False,
) -> None:
    """Serve many tasks on one encoder: embeddings, search, and a page to compare results.

    Deep-prompt tasks share batches and the encoder's memory. Without --keys, anyone may use the
    server, and tasks can be changed only if it listens on loopback.
    """
    if int8 and onnx is None:
        raise ConfigError("--int8 needs --onnx FOLDER; create it with `dptdr export --int8`")
    # Importing torch takes seconds.
    sys.stderr.write("starting ...\n")
    import dptdr

    dptdr.serve(
        tasks or [],
        backbone=backbone,
        indexes=index or [],
        host=host,
        port=port,
        hybrid=hybrid,
        cross_encoder=cross_encoder,
        tasks_folder=tasks_folder,
        state_folder=state,
        keys_file=keys,
        allowed_hosts=allowed_host or [],
        onnx=onnx,
        **settings,
    )
