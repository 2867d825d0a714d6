"""Running a server: one process, or several that share the catalogue on disk."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dptdr.errors import DptdrError, ServingError
from dptdr.serving.settings import ServerSettings
from dptdr.serving.temporary import temporary_folder

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

    from dptdr.serving.connections import limited_protocol

    return uvicorn.Config(
        app,
        http=limited_protocol(
            receive_seconds=settings.receive_seconds, max_connections=settings.max_connections
        ),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(settings.stop_seconds) + 1,
        server_header=False,
    )


def _serve_one(settings: ServerSettings, *, host: str, port: int) -> None:
    from dptdr.serving.draining import DrainingServer, announce
    from dptdr.serving.http.app import build_app
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
    from dptdr.serving.supervisor import Supervisor

    file = settings.state_folder / "settings.json"
    settings.write(file)
    config = _config(None, settings, host=host, port=port)
    with _metrics_folder():
        Supervisor(
            work,
            (str(file), _bind(config, host=host, port=port)),
            workers=settings.workers,
            patience_seconds=settings.drain_seconds + settings.stop_seconds + 5.0,
        ).run()


def work(file: str, socket: Any, failures: Any) -> None:
    """Be a worker process: load everything, then accept from the socket that all workers share.

    Args:
        file: The settings file.
        socket: The listening socket. Nothing is accepted before the worker can answer, so that
            a worker that takes another's place costs nobody an error.
        failures: Where to say why nothing could be loaded.
    """
    from dptdr.serving.draining import DrainingServer, announce
    from dptdr.serving.http.app import build_app
    from dptdr.serving.runtime import Runtime
    from dptdr.serving.supervisor import CANNOT_LOAD

    _end_with_parent()
    settings = ServerSettings.read(Path(file))
    try:
        runtime = Runtime(settings)
        runtime.load()
    except DptdrError as error:
        failures.put(str(error))
        sys.exit(CANNOT_LOAD)
    announce(runtime)
    config = _config(build_app(runtime), settings, host="", port=0)
    config.configure_logging()
    DrainingServer(config).run(sockets=[socket])


def _end_with_parent() -> None:
    """Stop this worker when the supervisor is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="dptdr-parent", daemon=True).start()


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    """Give all workers one folder for their counters, before any of them imports the client."""
    with temporary_folder("metrics") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
