"""Which tasks and versions a server knows, on disk, shared by all its worker processes.

::

    STATE/catalogue.json    names, versions, which one is the default, what stood there before
    STATE/bundles/KEY/      a copy of each bundle, named after its content, never changed
    STATE/lock              held while the catalogue is changed

Bundles are copied in, so that retraining a task in place cannot change the vectors of a version
that is being served.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dptdr.errors import BundleError, DataError, ServingError
from dptdr.io.atomic import atomic_folder, read_json, sha256_file, write_json

FORMAT_VERSION = 1

_HISTORY = 20
"""Former defaults that are remembered."""


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One task of the catalogue.

    Args:
        default: The version that the bare name means.
        history: Former defaults, oldest first.
        versions: Version to the key of its bundle.
        added: Version to when it came, ISO 8601.
    """

    default: str
    history: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)

    def with_version(self, version: str, *, key: str, default: bool) -> "TaskRecord":
        """Return the record with one version more."""
        moved = default and version != self.default
        return TaskRecord(
            default=version if default else self.default,
            history=(*self.history, self.default)[-_HISTORY:] if moved else self.history,
            versions={**self.versions, version: key},
            added={**self.added, version: datetime.now(UTC).isoformat(timespec="seconds")},
        )

    def with_default(self, version: str, *, history: tuple[str, ...]) -> "TaskRecord":
        """Return the record with another default."""
        return TaskRecord(
            default=version, history=history[-_HISTORY:], versions=self.versions, added=self.added
        )

    def without(self, version: str) -> "TaskRecord":
        """Return the record with one version less."""
        return TaskRecord(
            default=self.default,
            history=tuple(v for v in self.history if v != version),
            versions={v: key for v, key in self.versions.items() if v != version},
            added={v: when for v, when in self.added.items() if v != version},
        )


class Catalogue:
    """The catalogue of one state folder.

    Args:
        folder: The state folder; it is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "catalogue.json"
        (folder / "bundles").mkdir(parents=True, exist_ok=True)

    def signature(self) -> tuple[int, int, int]:
        """Return what changes whenever the catalogue does; cheap enough for every request."""
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def read(self) -> dict[str, TaskRecord]:
        """Return all tasks.

        Raises:
            ServingError: If the file is broken.
        """
        if not self.file.is_file():
            return {}
        try:
            values = read_json(self.file)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise ServingError(
                    f"{self.file}, field 'format_version': expected {FORMAT_VERSION}, got "
                    f"{version!r}; start with another state folder"
                )
            return {
                name: TaskRecord(
                    default=entry["default"],
                    history=tuple(entry["history"]),
                    versions=dict(entry["versions"]),
                    added=dict(entry["added"]),
                )
                for name, entry in values["tasks"].items()
            }
        except (KeyError, TypeError, AttributeError, DataError) as error:
            raise ServingError(
                f"{self.file}: expected a catalogue of tasks, {error!r}; delete the state folder "
                "and add the tasks again"
            ) from None

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, TaskRecord]]:
        """Hold the lock, give all tasks to change, and write them when the block ends well.

        Yields:
            The tasks; the caller exchanges entries in place.
        """
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in (self.folder / "bundles").glob(".*.tmp"):
                # Written under this lock only: whoever wrote it is dead.
                shutil.rmtree(left, ignore_errors=True)
            tasks = self.read()
            before = dict(tasks)
            yield tasks
            if tasks != before:
                self._write(tasks)
            used = {key for entry in tasks.values() for key in entry.versions.values()}
            was = {key for entry in before.values() for key in entry.versions.values()}
            for key in was - used:
                shutil.rmtree(self.bundle(key), ignore_errors=True)

    def _write(self, tasks: dict[str, TaskRecord]) -> None:
        values: dict[str, Any] = {
            name: {
                "default": entry.default,
                "history": list(entry.history),
                "versions": entry.versions,
                "added": entry.added,
            }
            for name, entry in tasks.items()
        }
        # Written at every change, whole: with a thousand tasks indenting would be most of it.
        write_json(self.file, {"format_version": FORMAT_VERSION, "tasks": values}, indent=None)

    def bundle(self, key: str) -> Path:
        """Return where the copy of a bundle lies."""
        return self.folder / "bundles" / key

    def keep(self, source: Path, *, weights_file: str) -> str:
        """Copy a bundle's manifest and weights into the state folder, unless a good copy is there.

        Args:
            source: The bundle.
            weights_file: Its weights file.

        Returns:
            The key of the copy; equal bundles have one.
        """
        manifest = (source / "task.json").read_bytes()
        key = _key(manifest)
        target = self.bundle(key)
        if not _holds(target, manifest, weights_file):
            with atomic_folder(target) as temporary:
                shutil.copyfile(source / weights_file, temporary / weights_file)
                (temporary / "task.json").write_bytes(manifest)
        return key


def bundle_key(source: Path) -> str:
    """Return the key that a bundle's copy would have.

    Raises:
        BundleError: If there is no bundle.
    """
    try:
        return _key((source / "task.json").read_bytes())
    except OSError:
        raise BundleError(
            f"{source}: expected a task bundle with a task.json, found none"
        ) from None


def _key(manifest: bytes) -> str:
    # The manifest holds the checksum of the weights.
    return hashlib.sha256(manifest).hexdigest()[:32]


def _holds(folder: Path, manifest: bytes, weights_file: str) -> bool:
    """Say whether a copy is whole."""
    try:
        expected = json.loads(manifest)["weights_sha256"]
        kept = (folder / "task.json").read_bytes()
        return kept == manifest and sha256_file(folder / weights_file) == expected
    except (OSError, ValueError, KeyError, TypeError):
        return False
