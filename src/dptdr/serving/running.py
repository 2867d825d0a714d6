"""Running a server: one process, or several that share the catalogue on disk."""

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dptdr.errors import ServingError
from dptdr.serving.settings import ServerSettings

_BACKLOG = 2048


def serve(settings: ServerSettings, *, host: str, port: int) -> None:
    """Run a server until it is told to stop.

    Args:
        settings: What to serve and how.
        host: Address to listen on.
        port: Port to listen on, 0 for a free one (printed at start).

    Raises:
        DptdrError: If the backbone, a task or an index cannot be loaded, or the port is taken.
    """
    if settings.workers > 1:
        _serve_workers(settings, host=host, port=port)
    else:
        _serve_one(settings, host=host, port=port)


def _config(app: Any, settings: ServerSettings, *, host: str, port: int) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        host=host,
        port=port,
        factory=isinstance(app, str),
        workers=settings.workers,
        access_log=False,
        log_level="warning",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(settings.stop_seconds) + 1,
        server_header=False,
    )


def _serve_one(settings: ServerSettings, *, host: str, port: int) -> None:
    from dptdr.serving.draining import DrainingServer, announce
    from dptdr.serving.http import build_app
    from dptdr.serving.runtime import Runtime

    runtime = Runtime(settings)
    announce(runtime)
    config = _config(build_app(runtime), settings, host=host, port=port)
    server = DrainingServer(config)
    socket = _bind(config, host=host, port=port)
    # The signal that ended the server is raised again behind it: the end is in order.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
    if runtime.failure is not None:
        raise runtime.failure


def _bind(config: Any, *, host: str, port: int) -> Any:
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise ServingError(
            f"cannot listen on {host} port {port}: is the port taken? choose another --port"
        ) from None
    bound = socket.getsockname()[1]
    sys.stderr.write(f"listening on http://{host}:{bound}\n")
    sys.stderr.flush()
    return socket


def _serve_workers(settings: ServerSettings, *, host: str, port: int) -> None:
    from uvicorn.supervisors import Multiprocess

    from dptdr.serving.draining import DrainingServer
    from dptdr.serving.http import SETTINGS_VARIABLE

    file = settings.state_folder / "settings.json"
    settings.write(file)
    os.environ[SETTINGS_VARIABLE] = str(file)
    with _metrics_folder():
        _try_start(file)
        config = _config("dptdr.serving.http:worker_app", settings, host=host, port=port)
        server = DrainingServer(config)
        with contextlib.suppress(KeyboardInterrupt):
            Multiprocess(
                config, target=server.run, sockets=[_bind(config, host=host, port=port)]
            ).run()


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    """Give all workers one folder for their counters, before any of them imports the client."""
    folder = tempfile.mkdtemp(prefix="dptdr-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


def _try_start(file: Path) -> None:
    """Load everything once in a process of its own, so that a mistake ends the server at once.

    Without this a supervisor would start failing workers for ever.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_load_once, args=(str(file), theirs))
    process.start()
    theirs.close()
    try:
        message = ours.recv()
    except EOFError:
        message = "the process that loads the tasks ended; see above"
    process.join()
    if message is not None:
        raise ServingError(message)


def _load_once(file: str, pipe: Any) -> None:
    from dptdr.errors import DptdrError
    from dptdr.serving.runtime import Runtime

    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    try:
        settings = replace(ServerSettings.read(Path(file)), hybrid=False)
        runtime = Runtime(settings)
        runtime.load()
        runtime.stop()
    except DptdrError as error:
        pipe.send(str(error))
    else:
        pipe.send(None)
