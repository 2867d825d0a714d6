"""Run a server as one process, or as several that share the catalogue."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from dptdr.errors import DptdrError, ServingError
from dptdr.io.temporary import temporary_folder
from dptdr.serving.settings import ServerSettings
from dptdr.serving.startup import say

_BACKLOG = 2048


def serve(settings: ServerSettings, *, host: str, port: int) -> None:
    """Run a server until stopped; port 0 picks a free port and prints it.

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
    from dptdr.serving.draining import DrainingServer
    from dptdr.serving.http.app import build_app
    from dptdr.serving.runtime import Runtime

    runtime = Runtime(settings)
    config = _config(build_app(runtime), settings, host=host, port=port)
    server = DrainingServer(config, runtime)
    socket = _bind(config, host=host, port=port)
    # uvicorn re-raises the signal after a clean shutdown.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
    if runtime.failure is not None:
        raise runtime.failure


def _bind(config: Any, *, host: str, port: int) -> Any:
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise ServingError(
            f"cannot listen on {host} port {port}, which may be in use; choose a different --port"
        ) from None
    sys.stderr.write(f"listening on http://{host}:{socket.getsockname()[1]}\n")
    sys.stderr.flush()
    return socket


def _serve_workers(settings: ServerSettings, *, host: str, port: int) -> None:
    from dptdr.serving.supervisor import Supervisor

    socket = _bind(_config(None, settings, host=host, port=port), host=host, port=port)
    say(f"starting {settings.workers} workers")
    # Must be set before any worker imports the metrics client, so that all share it.
    with temporary_folder("metrics") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        try:
            Supervisor(
                work,
                (settings, socket),
                workers=settings.workers,
                patience_seconds=settings.drain_seconds + settings.stop_seconds + 5.0,
            ).run()
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def work(settings: ServerSettings, socket: Any, reports: Any) -> None:
    """Run one worker: load everything, then accept connections.

    Args:
        socket: Listening socket shared by all workers.
        reports: Connection that receives ``None`` once loaded, or an error message.
    """
    from dptdr.serving.draining import DrainingServer
    from dptdr.serving.http.app import build_app
    from dptdr.serving.runtime import Runtime
    from dptdr.serving.supervisor import CANNOT_LOAD

    threading.Thread(target=_end_with_parent, name="dptdr-parent", daemon=True).start()
    try:
        runtime = Runtime(settings)
        runtime.load()
    except DptdrError as error:
        reports.send(str(error))
        sys.exit(CANNOT_LOAD)
    reports.send(None)
    config = _config(build_app(runtime), settings, host="", port=0)
    config.configure_logging()
    DrainingServer(config, runtime).run(sockets=[socket])


def _end_with_parent() -> None:
    """Stop this worker when the supervisor dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
