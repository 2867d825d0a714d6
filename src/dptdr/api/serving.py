"""Serve tasks over HTTP."""

from collections.abc import Sequence
from typing import Any

from dptdr.api.inputs import AnyPath
from dptdr.config.arguments import checked


@checked
def serve(
    tasks: Sequence[AnyPath] = (),
    *,
    backbone: str | None = None,
    indexes: Sequence[AnyPath] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    **settings: Any,
) -> None:
    """Serve many tasks on one encoder over HTTP until stopped.

    Args:
        tasks: Task folders, each as ``FOLDER`` or ``NAME=FOLDER``.
        backbone: The encoder; the first task's by default.
        indexes: Index folders, each as ``FOLDER`` or ``TASK=FOLDER``.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free port.
        **settings: ``allowed_hosts``, and fields of ``dptdr.serving.settings.ServerSettings``.
    """
    from dptdr.serving.server import serve as run_server
    from dptdr.serving.startup import server_settings

    with server_settings(
        tasks, backbone=backbone, indexes=indexes, host=host, **settings
    ) as complete:
        run_server(complete, host=host, port=port)
