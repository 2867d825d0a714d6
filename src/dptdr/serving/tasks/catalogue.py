"""The on-disk catalogue of tasks and versions, shared by all workers.

::

    STATE/catalogue.json    names, versions, current and former defaults, indexes, removed names
    STATE/bundles/KEY/      a copy of each bundle, content-addressed and immutable
    STATE/lock              held while the catalogue changes
    STATE/start             the start of the server whose tasks have been added
    STATE/start.lock        held while they are added

Bundles are copied, so that retraining a task in place does not affect served versions. Indexes are
too large to copy: they stay in place, and hashes of their manifests are recorded.
"""

import contextlib
import fcntl
import hashlib
import itertools
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dptdr.errors import BundleError, DataError, ServingError
from dptdr.io.atomic import atomic_folder, read_json, read_regular, sha256_file, write_json
from dptdr.io.lines import describe

FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_KEY = re.compile(r"[0-9a-f]{32}")
_MAX_HISTORY = 20
_MAX_REMOVED_VERSIONS = 100
"""Removed versions that are remembered for each task."""
_MAX_REMOVED_TASKS = 1000


class IndexRecord(NamedTuple):
    """A version's index: its folder in the tasks folder and a hash of its manifests."""

    folder: str
    key: str


def number_of(version: str) -> int:
    """Return the number of a version that was named by counting, otherwise 0."""
    return int(version) if version.isdigit() and len(version) < 10 else 0


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A task in the catalogue, or what is remembered of a removed one, which has no versions.

    Args:
        default: The default version.
        history: Former defaults, oldest first.
        versions: Version to bundle key.
        added: Version to the time it was added, ISO 8601.
        indexes: Version to its own index, if any.
        last: The highest number ever given to a version.
        removed: Removed version to bundle key, oldest first: a client that asks for a version by
            name never gets another one's vectors.
    """

    default: str = ""
    history: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, IndexRecord] = field(default_factory=dict)
    last: int = 0
    removed: dict[str, str] = field(default_factory=dict)

    def with_version(
        self, version: str, *, key: str, default: bool, index: IndexRecord | None
    ) -> "TaskRecord":
        """Return a copy with an additional version; the first one is the default."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        added = replace(
            self,
            versions={**self.versions, version: key},
            added={**self.added, version: now},
            last=max(self.last, number_of(version)),
            removed={v: held for v, held in self.removed.items() if v != version},
        ).with_index(version, index)
        if not self.versions:
            return replace(added, default=version)
        if not default or version == self.default:
            return added
        return added.with_default(version, history=(*self.history, self.default))

    def with_default(self, version: str, *, history: tuple[str, ...]) -> "TaskRecord":
        """Return a copy with a different default version."""
        return replace(self, default=version, history=history[-_MAX_HISTORY:])

    def with_index(self, version: str, index: IndexRecord | None) -> "TaskRecord":
        """Return a copy with a different index for a version; ``None`` changes nothing."""
        return self if index is None else replace(self, indexes={**self.indexes, version: index})

    def without(self, version: str) -> "TaskRecord":
        """Return a copy without a version, which is not the default."""
        parts: dict[str, Any] = {
            name: {v: value for v, value in getattr(self, name).items() if v != version}
            for name in ("versions", "added", "indexes")
        }
        history = _history([v for v in self.history if v != version], default=self.default)
        removed = _newest({**self.removed, version: self.versions[version]})
        return replace(self, history=history, removed=removed, **parts)

    def emptied(self) -> "TaskRecord":
        """Return what is remembered of the task after its removal."""
        return TaskRecord(last=self.last, removed=_newest({**self.removed, **self.versions}))


def _newest(removed: dict[str, str]) -> dict[str, str]:
    return dict(list(removed.items())[-_MAX_REMOVED_VERSIONS:])


def _history(former: Sequence[str], *, default: str) -> tuple[str, ...]:
    """Drop former defaults that a rollback would not change."""
    line = [version for version, _ in itertools.groupby([*former, default])]
    return tuple(line[:-1])


class Catalogue:
    """The catalogue in a state folder, which is created if missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "catalogue.json"
        (folder / "bundles").mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not self.file.exists():
                self._write({})

    def signature(self) -> tuple[int, int, int]:
        """Return a value that changes with the catalogue; cheap enough for every request."""
        try:
            stat = self.file.stat()
        except OSError:
            return (0, 0, 0)
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def read(self) -> dict[str, TaskRecord]:
        """Read all tasks, and what is remembered of removed ones.

        Raises:
            ServingError: If the file is missing or damaged.
        """
        if not self.file.exists():
            raise ServingError(
                f"{self.file}: the task catalogue was removed while the server is running; restart "
                "the server"
            )
        try:
            values = read_json(self.file)
            if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
                found = values.get("format_version") if isinstance(values, dict) else None
                raise ValueError(f"expected format_version {FORMAT_VERSION}, got {describe(found)}")
            gone = values.get("removed", [])
            return {name: _removed(name, value) for name, value in gone} | {
                name: _record(name, value) for name, value in values["tasks"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
            raise ServingError(
                f"{self.file}: damaged task catalogue ({str(error)[:200]}); delete the state "
                "folder and add the tasks again"
            ) from None

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, TaskRecord]]:
        """Lock the catalogue, yield all tasks for in-place changes, then write them back."""
        with self._locked():
            for left in (self.folder / "bundles").glob(".*.tmp"):
                # Only written under this lock, so the process that left it is dead.
                shutil.rmtree(left, ignore_errors=True)
            tasks = self.read()
            before = dict(tasks)
            yield tasks
            if tasks != before:
                self._write(tasks)
            for key in _keys(before) - _keys(tasks):
                shutil.rmtree(self.bundle(key), ignore_errors=True)

    @contextlib.contextmanager
    def once(self, start: str) -> Iterator[bool]:
        """Hold a lock and yield whether this is the first worker since the server was launched.

        The other workers wait until it has finished.

        Args:
            start: Identifies the launch; if empty, every worker counts as the first.
        """
        mark = self.folder / "start"
        with (self.folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            first = not start or not mark.exists() or mark.read_text() != start
            yield first
            if first:
                mark.write_text(start)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise ServingError(
                f"{self.folder}: cannot lock the state folder ({error.strerror}); restart the "
                "server"
            ) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, tasks: Mapping[str, TaskRecord]) -> None:
        # As pairs, because the keys of objects are sorted.
        records = {
            name: asdict(record) | {"removed": [*record.removed.items()]}
            for name, record in tasks.items()
        }
        gone = [
            [name, {key: records[name][key] for key in ("removed", "last")}]
            for name, record in tasks.items()
            if not record.versions
        ]
        values = {
            "format_version": FORMAT_VERSION,
            "tasks": {name: records[name] for name, record in tasks.items() if record.versions},
            "removed": gone[-_MAX_REMOVED_TASKS:],
        }
        # Not indented, which would dominate the time with a thousand tasks.
        write_json(self.file, values, indent=None)

    def bundle(self, key: str) -> Path:
        """Return the path of a bundle's copy."""
        return self.folder / "bundles" / key

    def keep(self, source: Path, *, weights_file: str) -> str:
        """Copy a bundle into the state folder, unless it is already there; return its key."""
        manifest = read_regular(source / "task.json")
        key = _key(manifest)
        target = self.bundle(key)
        if not _is_whole(target, manifest, weights_file):
            with atomic_folder(target) as temporary:
                shutil.copyfile(source / weights_file, temporary / weights_file)
                (temporary / "task.json").write_bytes(manifest)
        return key


def bundle_key(source: Path) -> str:
    """Compute the key of a bundle.

    Raises:
        BundleError: If there is no bundle.
    """
    try:
        return _key(read_regular(source / "task.json"))
    except DataError:
        raise BundleError(f"{source}: expected a task bundle with a task.json, got none") from None


def _key(manifest: bytes) -> str:
    # The manifest includes the checksum of the weights.
    return hashlib.sha256(manifest).hexdigest()[:32]


def _keys(tasks: dict[str, TaskRecord]) -> set[str]:
    return {key for record in tasks.values() for key in record.versions.values()}


def _is_whole(folder: Path, manifest: bytes, weights_file: str) -> bool:
    try:
        if read_regular(folder / "task.json") != manifest:
            return False
        expected = read_json(folder / "task.json")["weights_sha256"]
        return bool(sha256_file(folder / weights_file) == expected)
    except (OSError, DataError, KeyError, TypeError):
        return False


def _record(name: str, value: Any) -> TaskRecord:
    """Parse a task; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    versions, history = value["versions"], value["history"]
    indexes = {version: IndexRecord(*held) for version, held in value.get("indexes", {}).items()}
    good = (
        NAME.fullmatch(name)
        and all(VERSION.fullmatch(version) for version in versions)
        # Keys are used as folder names.
        and all(_KEY.fullmatch(key) for key in versions.values())
        and isinstance(history, list)
        and {value["default"], *history, *indexes} <= set(versions)
        and all(isinstance(text, str) for text in value["added"].values())
        and all(isinstance(text, str) for index in indexes.values() for text in index)
    )
    if not good:
        raise ValueError(f"an invalid record of task {name[:100]!r}")
    return replace(
        _removed(name, value),
        default=value["default"],
        history=_history(history, default=value["default"]),
        versions=versions,
        added=value["added"],
        indexes=indexes,
    )


def _removed(name: str, value: Any) -> TaskRecord:
    """Parse what is remembered of a removed task; raises as :func:`_record`."""
    # Catalogues of earlier versions have neither.
    removed, last = dict(value.get("removed", [])), value.get("last", 0)
    good = (
        NAME.fullmatch(name)
        and all(VERSION.fullmatch(version) for version in removed)
        and all(_KEY.fullmatch(key) for key in removed.values())
        and type(last) is int
    )
    if not good:
        raise ValueError(f"an invalid record of the removed versions of task {name[:100]!r}")
    return TaskRecord(last=last, removed=removed)
