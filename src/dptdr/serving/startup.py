"""Resolve the arguments of ``dptdr serve`` to complete server settings."""

import contextlib
import importlib.util
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dptdr.config.arguments import reject_unused_arguments
from dptdr.config.settings import from_values
from dptdr.errors import ConfigError
from dptdr.io.atomic import writing
from dptdr.io.outputs import refuse_foreign
from dptdr.io.temporary import temporary_folder
from dptdr.serving.settings import ServerLimits, ServerSettings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "structlog")
_PLACES = {
    "tasks_folder": "a folder of task bundles",
    "keys_file": "a file with API keys",
    "onnx": "a folder written by `dptdr export --int8`",
}


def say(what: str) -> None:
    """Print the current phase to standard error."""
    sys.stderr.write(f"{what} ...\n")
    sys.stderr.flush()


@contextlib.contextmanager
def server_settings(
    tasks: Sequence[Path | str],
    *,
    backbone: str | None = None,
    indexes: Sequence[Path | str] = (),
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    state_folder: Path | str | None = None,
    **settings: Any,
) -> Iterator[ServerSettings]:
    """Yield complete settings, by default with a temporary ``state_folder``.

    Args:
        tasks: Each as ``FOLDER`` or ``NAME=FOLDER``.
        backbone: The encoder; the first task's by default.
        indexes: Each as ``FOLDER`` or ``TASK=FOLDER``.
        host: Address to listen on. Without keys, tasks can be changed only on loopback.
        allowed_hosts: Additional host names of an open server.
        state_folder: Folder for the catalogue and copies of bundles.
        **settings: Other fields of ``ServerSettings``.

    Raises:
        ConfigError: If a setting is unknown or wrong, or a package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}; run `pip install 'dptdr[serve]'`")
    served = set(ServerSettings.__dataclass_fields__) - set(ServerLimits.__dataclass_fields__)
    limits = {name: settings.pop(name) for name in settings.keys() - served}
    checked = asdict(from_values(ServerLimits, limits, what="server settings"))
    _reject_unused_settings(
        settings, limits, checked, indexes=bool(indexes), hosts=bool(allowed_hosts)
    )
    for name in _PLACES.keys() & {name for name, path in settings.items() if path is not None}:
        settings[name] = Path(settings[name])
        if not settings[name].exists():
            raise ConfigError(f"{settings[name]}: expected {_PLACES[name]}, got no file or folder")
    from dptdr.model.bundle import read_manifest
    from dptdr.serving.searching import index_key

    named = [_named(str(given)) for given in tasks]
    if backbone is None:
        if not named:
            raise ConfigError("expected at least one task, or --backbone to serve the bare encoder")
        backbone = read_manifest(named[0][1]).backbone
    names = [name or read_manifest(path).name for name, path in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"duplicate task name '{twice[0]}'; use NAME=FOLDER")
    searched = [_named(str(given)) for given in indexes]
    if settings.get("tasks_folder") is None and state_folder is None:
        unknown = sorted({name for name, _ in searched} - {*names, ""})
        if unknown:
            raise ConfigError(
                f"indexes: expected one of the tasks {', '.join(names) or 'none'} before '=', got "
                f"'{unknown[0]}'"
            )
    with _state_folder(state_folder) as folder:
        yield ServerSettings(
            backbone=backbone,
            state_folder=folder,
            tasks=tuple((name, path) for name, (_, path) in zip(names, named, strict=True)),
            indexes=tuple(searched),
            start=uuid.uuid4().hex,
            index_keys=tuple(index_key(path) for _, path in searched),
            open_administration=host in _LOOPBACK,
            hosts=tuple(name.lower() for name in (host, *allowed_hosts)),
            **settings,
            **checked,
        )


def _reject_unused_settings(
    settings: Mapping[str, Any],
    limits: Mapping[str, Any],
    checked: Mapping[str, Any],
    *,
    indexes: bool,
    hosts: bool,
) -> None:
    """Reject settings that have no effect beside the others."""
    keys = settings.get("keys_file") is not None
    if settings.get("onnx") is not None:
        reject_unused_arguments({"layout": checked["layout"]}, "with onnx")
    if keys:
        reject_unused_arguments({"allowed_hosts": hosts}, "with keys, which any host may use")
    if not indexes and settings.get("tasks_folder") is None:
        reject_unused_arguments({"hybrid": settings.get("hybrid")}, "without an index")
    # A key may have a rate of its own.
    if not (checked["requests_per_second"] or checked["task_requests_per_second"] or keys):
        reject_unused_arguments(
            {"burst_requests": "burst_requests" in limits}, "without a rate limit"
        )


def _named(given: str) -> tuple[str, Path]:
    """Split ``NAME=FOLDER``, unless the '=' is part of an existing folder's name."""
    name, equals, folder = given.partition("=")
    if equals and not Path(given).exists():
        if not name or not folder:
            raise ConfigError(f"expected FOLDER or NAME=FOLDER, got '{given}'")
        return name, Path(folder)
    return "", Path(given)


@contextlib.contextmanager
def _state_folder(given: Path | str | None) -> Iterator[Path]:
    if given is None:
        with temporary_folder("serve") as folder:
            yield folder
    else:
        folder = Path(given)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # A server that was killed at its start may have left a state without a catalogue.
        if {entry.name for entry in folder.iterdir()} - {"bundles", "lock"}:
            refuse_foreign(folder, mark="catalogue.json")
        yield folder
