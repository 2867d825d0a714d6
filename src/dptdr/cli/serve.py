"""``dptdr serve``: an HTTP server for many tasks on one encoder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from dptdr.serving.settings import ServerSettings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def command(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Task bundles, as FOLDER or NAME=FOLDER; none: the bare backbone."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Encoder: minilm, a folder or a name. Default: the first task's."),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="Index folder to search, as FOLDER or TASK=FOLDER. May be given several times; a "
            "task finds an index that holds its vectors."
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option(help="Build BM25 beside each index, for searches in mode 'hybrid'.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    tasks_folder: Annotated[
        Path | None,
        typer.Option(help="The one folder whose bundles requests may add; none: no adding."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for the catalogue and copies of bundles. Default: temporary."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="TOML file with API keys; none: an open server.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Processor threads per worker; 0: all, shared by workers.")
    ] = 0,
    prompt_memory: Annotated[
        int, typer.Option(min=1, help="Prompts kept in memory per worker, in MB.")
    ] = 1024,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per batch.")] = 4096,
    queue_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that may wait before requests get 429.")
    ] = 400_000,
    max_body: Annotated[int, typer.Option(min=1, help="Longest request body, in kB.")] = 8000,
    max_texts: Annotated[int, typer.Option(min=1, help="Most texts per request.")] = 2048,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per request.")] = 300_000,
    max_text_characters: Annotated[
        int, typer.Option(min=1, help="Longest text, in characters.")
    ] = 200_000,
    receive_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds that a client may take to send headers, and then its body."
        ),
    ] = 30.0,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Most connections, per worker.")
    ] = 1000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name under which an open server may be reached, beside its addresses and "
            "localhost. May be given several times."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Longest wait for vectors, in seconds.")
    ] = 60.0,
    rate: Annotated[
        float, typer.Option(min=0, help="Requests per second and key, per worker; 0: no limit.")
    ] = 0.0,
    task_rate: Annotated[
        float, typer.Option(min=0, help="Requests per second and task, per worker; 0: no limit.")
    ] = 0.0,
    burst: Annotated[
        int, typer.Option(min=1, help="Requests that may come at once before a rate counts.")
    ] = 20,
    drain: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to go on answering, /health at 503, after a stop signal."
        ),
    ] = 0.0,
    check_every: Annotated[
        int,
        typer.Option(min=0, help="Batches between self-checks of one row against it alone."),
    ] = 500,
    layout: Annotated[
        str | None, typer.Option(help="Force 'packed' or 'padded' batches; default: the faster.")
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `dptdr export --int8` wrote: compute in 8 bits with ONNX Runtime; "
            "what that costs in nDCG@10 is in its export.json."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option(hidden=True, help="Implied by --onnx.")] = False,
) -> None:
    """Serve many tasks on one encoder: vectors, search, and a page to compare results.

    Tasks tuned by deep prompts share batches and the encoder's memory. Without --keys everyone may
    use the server; tasks can then be changed only when it listens on this machine alone.
    """
    from dptdr.errors import ConfigError

    if layout not in (None, "packed", "padded"):
        raise ConfigError(f"--layout: expected 'packed' or 'padded', got '{layout}'")
    named = tuple(_named(given) for given in tasks or [])
    if int8 and onnx is None:
        raise ConfigError("--int8 needs --onnx FOLDER; make it with `dptdr export --int8`")
    for option, folder in (("--tasks-folder", tasks_folder), ("--keys", keys), ("--onnx", onnx)):
        if folder is not None and not folder.exists():
            raise ConfigError(f"{option} {folder}: no such file or folder")
    _check_installed()
    from dptdr.serving.runtime import backbone_of, task_name
    from dptdr.serving.settings import ServerSettings

    with _state_folder(state) as folder:
        settings = ServerSettings(
            backbone=backbone or backbone_of(tuple(("", path) for _, path in named)),
            state_folder=folder,
            tasks=tuple((name or task_name(path), path) for name, path in named),
            tasks_folder=tasks_folder,
            indexes=tuple(_named(given) for given in index or []),
            hybrid=hybrid,
            keys_file=keys,
            open_administration=host in _LOOPBACK,
            workers=workers,
            threads=threads or (_threads_per_worker(workers) if workers > 1 else 0),
            prompt_memory_bytes=prompt_memory * 1_000_000,
            batch_tokens=batch_tokens,
            queue_tokens=queue_tokens,
            max_body_bytes=max_body * 1000,
            max_texts=max_texts,
            max_tokens=max_tokens,
            max_text_characters=max_text_characters,
            receive_seconds=receive_timeout,
            max_connections=max_connections,
            hosts=tuple(name.lower() for name in (host, *(allowed_host or []))),
            timeout_seconds=timeout,
            requests_per_second=rate,
            task_requests_per_second=task_rate,
            burst_requests=burst,
            drain_seconds=drain,
            check_every=check_every,
            layout=cast("Literal['packed', 'padded'] | None", layout),
            onnx=onnx,
        )
        _run(settings, host=host, port=port)


def _run(settings: "ServerSettings", *, host: str, port: int) -> None:
    from dptdr.serving.server import serve

    serve(settings, host=host, port=port)


def _named(given: str) -> tuple[str, Path]:
    """Split NAME=FOLDER; a folder whose own name holds '=' is taken as it is."""
    name, equals, folder = given.partition("=")
    if equals and not Path(given).exists():
        return name, Path(folder)
    return "", Path(given)


def _threads_per_worker(workers: int) -> int:
    import os

    return max(1, (os.cpu_count() or 1) // workers)


def _check_installed() -> None:
    import importlib.util

    from dptdr.errors import ConfigError

    needed = ("fastapi", "uvicorn", "prometheus_client", "structlog")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {', '.join(missing)}; install them with: pip install 'dptdr[serve]'"
        )


@contextlib.contextmanager
def _state_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    from dptdr.serving.temporary import temporary_folder

    with temporary_folder("serve") as folder:
        yield folder
