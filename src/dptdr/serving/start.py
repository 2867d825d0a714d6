"""From what a user asked a server to do to its complete settings."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dptdr.config.settings import declared
from dptdr.errors import ConfigError
from dptdr.serving.settings import ServerSettings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "structlog")


@contextlib.contextmanager
def server_settings(
    tasks: Sequence[Path | str],
    *,
    backbone: str | None = None,
    indexes: Sequence[Path | str] = (),
    host: str = "127.0.0.1",
    state_folder: Path | None = None,
    **settings: Any,
) -> Iterator[ServerSettings]:
    """Give complete settings, with a temporary state folder where none is named.

    Args:
        tasks: Each as ``FOLDER`` or ``NAME=FOLDER``.
        backbone: The encoder; the first task's by default.
        indexes: Each as ``FOLDER`` or ``TASK=FOLDER``.
        host: Address to listen on: tasks may be changed without keys on this machine alone.
        state_folder: Where the catalogue and copies of bundles lie.
        **settings: Further fields of ``ServerSettings``.

    Yields:
        The settings.

    Raises:
        ConfigError: If a setting is unknown or wrong, or a package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {', '.join(missing)}; install them with: pip install 'dptdr[serve]'"
        )
    unknown = sorted(set(settings) - set(declared(ServerSettings)))
    if unknown:
        raise ConfigError("; ".join(f"{name}: unknown setting" for name in unknown))
    from dptdr.serving.runtime import backbone_of, task_name

    named = [_named(str(given)) for given in tasks]
    workers = settings.get("workers", 1)
    if workers > 1 and not settings.get("threads"):
        settings["threads"] = max(1, (os.cpu_count() or 1) // workers)
    with _state_folder(state_folder) as folder:
        yield ServerSettings(
            backbone=backbone or backbone_of(tuple(named)),
            state_folder=folder,
            tasks=tuple((name or task_name(path), path) for name, path in named),
            indexes=tuple(_named(str(given)) for given in indexes),
            open_administration=host in _LOOPBACK,
            **settings,
        )


def _named(given: str) -> tuple[str, Path]:
    """Split NAME=FOLDER; a folder whose own name holds '=' is taken as it is."""
    name, equals, folder = given.partition("=")
    if equals and not Path(given).exists():
        return name, Path(folder)
    return "", Path(given)


@contextlib.contextmanager
def _state_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="dptdr-serve-") as folder:
        yield Path(folder)
