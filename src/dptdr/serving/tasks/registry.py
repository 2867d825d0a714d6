"""The task registry: tasks on one backbone, which can change while requests run.

Each request resolves its task once. A :class:`TaskVersion` is immutable, so no request sees a
partial update. Everything is verified before it becomes visible.
"""

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dptdr.errors import BundleError, DptdrError, ServingError
from dptdr.model.backbone import Backbone, Side
from dptdr.model.bundle import read_manifest
from dptdr.model.encoder import Encoder, Limits
from dptdr.model.packing import PromptRows
from dptdr.serving.forward import Forward
from dptdr.serving.tasks.catalogue import (
    NAME,
    VERSION,
    Catalogue,
    IndexRecord,
    TaskRecord,
    bundle_key,
    number_of,
)
from dptdr.serving.tasks.indexes import Indexes
from dptdr.serving.tasks.prompt_cache import PromptCache, PromptFile, TaskVersion
from dptdr.serving.tasks.validation import Verifier, deep_prompt_config

BARE = "backbone"
"""Task name of the bare backbone."""

_NEVER = (-1, -1, -1)
_RETRY_SECONDS = 10.0


class UnknownTask(ServingError):
    """The task or version does not exist."""


class TaskExists(ServingError):
    """A task or version with this name already exists."""


@dataclass(frozen=True, kw_only=True)
class ServedTask:
    """A task and its readable versions."""

    record: TaskRecord
    versions: Mapping[str, TaskVersion] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether every version, and its index if it has one, could be opened."""
        versions = self.versions.values()
        return len(versions) == len(self.record.versions) and not any(
            version.index_error for version in versions
        )


class TaskRegistry:
    """The tasks of one backbone: look up, add, replace, remove and roll back.

    Args:
        forward: The backbone's forward pass, used to verify bundles.
        state: State folder, shared by all workers of a server.
        budget_bytes: Maximum size of the prompt cache.
        indexes: The server's indexes; by default none, and none can be added.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        state: Path,
        budget_bytes: int = 1 << 30,
        indexes: Indexes | None = None,
    ) -> None:
        self.forward = forward
        self.backbone: Backbone = forward.backbone
        self.indexes = indexes or Indexes(dim=self.backbone.dim, folder=_no_folder)
        self.hot = PromptCache(budget_bytes, backbone=self.backbone)
        self.verifier = Verifier(forward, self.hot)
        self.catalogue = Catalogue(state)
        bare = Encoder(self.backbone)
        self.bare = TaskVersion(
            task=BARE,
            version="0",
            limits=bare.limits,
            prompts={"query": None, "passage": None},
            fingerprints={"query": bare.query_fingerprint, "passage": bare.passage_fingerprint},
        )
        self._tasks: Mapping[str, ServedTask] = {}
        self._seen = _NEVER
        self._retry_at = 0.0
        self._lock = threading.RLock()
        self.broken: dict[str, str] = {}
        self.unreadable = ""
        self.refresh()

    def resolve(self, name: str) -> TaskVersion:
        """Look up the current version for ``task`` or ``task@version``.

        Raises:
            UnknownTask: If there is no such task or version.
        """
        self.refresh()
        task_name, at, version = name.partition("@")
        if task_name == BARE and version in ("", "0"):
            return self.bare
        task = self._tasks.get(task_name)
        if task is None:
            raise UnknownTask(f"unknown task '{task_name[:100]}'; see /v1/tasks")
        wanted = version if at else task.record.default
        if wanted in task.versions:
            return task.versions[wanted]
        if wanted in task.record.versions:
            raise UnknownTask(
                f"the server's copy of '{task_name}@{wanted}' is damaged; add its bundle again"
            )
        raise _no_version(task_name, wanted, task.record)

    def tasks(self) -> dict[str, ServedTask]:
        """Return all tasks by name."""
        self.refresh()
        return dict(self._tasks)

    def versions(self) -> list[TaskVersion]:
        """Return all readable versions of all tasks, and the bare backbone."""
        added = (task.versions.values() for task in self.tasks().values())
        return [self.bare, *itertools.chain.from_iterable(added)]

    def prompt(self, version: TaskVersion, side: Side) -> PromptRows | None:
        """Return a version's prompt rows for a side."""
        return self.hot.get(version, side)

    def add(
        self,
        task: str,
        bundle: Path,
        *,
        version: str | None = None,
        default: bool = True,
        replace: bool = False,
        reuse: bool = False,
        index: str | None = None,
    ) -> TaskVersion:
        """Verify a bundle and add it as a version of a task.

        Args:
            bundle: The bundle's folder, which is copied and may change afterwards.
            version: Version name; the next number by default.
            default: Make this the task's default version.
            replace: Allow the task to exist already.
            reuse: Return an existing version with the same bundle, if any.
            index: Name of the version's index folder.

        Raises:
            TaskExists: If the task (without ``replace``) or the version already exists.
            ServingError: If a name is invalid, or the bundle cannot share batches with others.
            BundleError: If the bundle is damaged or has no effect.
            WrongBackbone: If it belongs to a different backbone.
            WrongPrompt: If the index contains different vectors.
        """
        check_names(task, version)
        key = bundle_key(bundle)
        tasks = self.tasks()
        known = self.catalogue.read().get(task)
        same = _same(known, key) if reuse else None
        # If the copy is damaged, the bundle is copied again below.
        if same is not None and task in tasks and same in tasks[task].versions:
            return self.set_default(task, same) if default else self.resolve(f"{task}@{same}")
        _free_version(known, task, version, key=key, replace=replace)
        manifest = self.verifier.verify(bundle)
        held = record = None
        if index is not None:
            record = self.indexes.record(index)
            fingerprint = manifest.passage_fingerprint
            # Keep it open until the version refers to it.
            held = self.indexes.check(record, version=task, fingerprint=fingerprint)
        with self._lock, self.catalogue.changing() as records:
            if self.catalogue.keep(bundle, weights_file=manifest.weights_file) != key:
                raise BundleError(f"{bundle}: the bundle changed while being added; try again")
            # Another worker may have been faster.
            known = records.get(task)
            same = _same(known, key) if reuse else None
            if same is not None:
                named = same
                if default and known is not None and named != known.default:
                    history = (*known.history, known.default)
                    records[task] = known.with_default(named, history=history)
                # Makes every worker open the new copy.
                self.catalogue.file.touch()
            else:
                named = _free_version(known, task, version, key=key, replace=replace)
                records[task] = (known or TaskRecord()).with_version(
                    named, key=key, default=default, index=record
                )
        added = self.resolve(f"{task}@{named}")
        del held
        return added

    def add_given(self, task: str, bundle: Path) -> str:
        """Add a bundle given at the start as the default, unless the task ever had it.

        Otherwise, what was changed at run time is kept; only a damaged copy is replaced.

        Returns:
            What is kept instead of the bundle as the default, for the user; else empty.

        Raises:
            DptdrError: As :meth:`add`.
        """
        check_names(task, None)
        key = bundle_key(bundle)
        known = self.catalogue.read().get(task, TaskRecord())
        if key not in {*known.versions.values(), *known.removed.values()}:
            self.add(task, bundle, replace=True)
            return ""
        if not known.versions:
            return (
                f"task '{task}' was removed; add it with POST /v1/tasks, or start with another "
                "state folder, to serve it again"
            )
        kept = f"task '{task}': the state's default version {known.default} is kept; the bundle "
        if _same(known, key) is None:
            return kept + "given was removed"
        self.add(task, bundle, default=False, replace=True, reuse=True)
        if known.versions[known.default] == key:
            return ""
        return kept + f"given is version {_same(known, key)}"

    def set_index(self, task: str, index: str, *, version: str | None = None) -> TaskVersion:
        """Switch a version (by default the current one) to a different index.

        Raises:
            UnknownTask: If there is no such task or version.
            WrongPrompt: If the index contains different vectors.
        """
        if task == BARE:
            raise ServingError(f"'{BARE}' has no index of its own; start the server with --index")
        found = self.resolve(task if version is None else f"{task}@{version}")
        record = self.indexes.record(index)
        held = self.indexes.check(
            record, version=found.name, fingerprint=found.fingerprints["passage"]
        )
        with self._lock, self.catalogue.changing() as records:
            known = _known(records, task, found.version)
            records[task] = known.with_index(found.version, record)
            self.catalogue.file.touch()
        changed = self.resolve(f"{task}@{found.version}")
        del held
        return changed

    def remove(self, task: str, *, version: str | None = None) -> None:
        """Remove a task or one of its versions; running requests finish normally.

        Raises:
            UnknownTask: If there is no such task or version.
            ServingError: If the version is the default and not the only one.
        """
        with self._lock, self.catalogue.changing() as records:
            known = _known(records, task, version)
            if version is None or len(known.versions) == 1:
                del records[task]
                # At the end, as the newest.
                records[task] = known.emptied()
            elif version == known.default:
                raise ServingError(
                    f"'{task}@{version}' is the default; make another version the default first, "
                    "or remove the whole task"
                )
            else:
                records[task] = known.without(version)
        self.refresh()

    def set_default(self, task: str, version: str) -> TaskVersion:
        """Set the default version for future requests.

        Raises:
            UnknownTask: If there is no such task or version.
        """
        with self._lock, self.catalogue.changing() as records:
            known = _known(records, task, version)
            if version != known.default:
                history = (*known.history, known.default)
                records[task] = known.with_default(version, history=history)
        return self.resolve(task)

    def rollback(self, task: str) -> TaskVersion:
        """Roll back to the previous default version.

        Raises:
            UnknownTask: If there is no such task.
            ServingError: If there is no previous default.
        """
        with self._lock, self.catalogue.changing() as records:
            known = _known(records, task, None)
            if not known.history:
                raise ServingError(
                    f"task '{task}' has no earlier default than '{known.default}' to roll back to"
                )
            records[task] = known.with_default(known.history[-1], history=known.history[:-1])
        return self.resolve(task)

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to :meth:`refresh`; costs one ``stat``."""
        return self._is_current()

    def _is_current(self) -> bool:
        # What could not be read, such as a missing index, may be back.
        due = self.broken and time.monotonic() >= self._retry_at
        return not due and self.catalogue.signature() == self._seen

    def refresh(self) -> None:
        """Load changes made by other workers, and try again what could not be read."""
        if self._is_current():
            return
        with self._lock:
            if self._is_current():
                return
            signature = self.catalogue.signature()
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            try:
                records = self.catalogue.read()
            except (ServingError, OSError) as error:
                if self._seen == _NEVER:
                    raise
                # Keep serving what is in memory.
                self.unreadable = str(error)
                self._seen = signature
                return
            self.unreadable = ""
            self.broken = {}
            tasks: dict[str, ServedTask] = {}
            for name, record in records.items():
                if not record.versions:
                    continue
                known = self._tasks.get(name)
                if known is not None and known.record == record and known.is_healthy:
                    tasks[name] = known
                else:
                    tasks[name] = ServedTask(record=record, versions=self._versions(name, record))
            gone = _file_keys(self._tasks) - _file_keys(tasks)
            self._tasks = tasks
            self._seen = signature
        if gone:
            self.hot.forget(gone)

    def _versions(self, name: str, record: TaskRecord) -> dict[str, TaskVersion]:
        known = self._tasks.get(name)
        versions = {}
        for version, key in record.versions.items():
            found = None if known is None else known.versions.get(version)
            try:
                if found is None or found.file is None or found.file.key != key:
                    found = self._open(name, version, record)
                versions[version] = self._with_index(found, record.indexes.get(version))
            except (DptdrError, OSError, ValueError) as error:
                # A damaged copy must not affect other tasks.
                self.broken[f"{name}@{version}"] = str(error)
        return versions

    def _with_index(self, version: TaskVersion, record: IndexRecord | None) -> TaskVersion:
        if record is None:
            return version
        try:
            served = self.indexes.check(
                record, version=version.name, fingerprint=version.fingerprints["passage"]
            )
        except (DptdrError, OSError, ValueError) as error:
            self.broken[f"{version.name}, index"] = str(error)
            return replace(version, index=None, index_error=str(error))
        return replace(version, index=served, index_error="")

    def _open(self, task: str, version: str, record: TaskRecord) -> TaskVersion:
        key = record.versions[version]
        folder = self.catalogue.bundle(key)
        manifest = read_manifest(folder)
        self.verifier.check_backbone(manifest, folder)
        config = deep_prompt_config(manifest, folder)
        untied = config.sharing == "untied"
        passage = None if config.sharing == "query-only" else "passage" if untied else "shared"
        return TaskVersion(
            task=task,
            version=version,
            limits=Limits(**manifest.limits),
            prompts={"query": "query" if untied else "shared", "passage": passage},
            fingerprints={
                "query": manifest.query_fingerprint,
                "passage": manifest.passage_fingerprint,
            },
            config=config,
            file=PromptFile(folder / manifest.weights_file, key=key),
            manifest=manifest,
            added=record.added.get(version, ""),
        )


def check_names(task: str, version: str | None) -> None:
    """Reject names that are not URL-safe.

    Raises:
        ServingError: If a name is invalid.
    """
    if not NAME.fullmatch(task) or task == BARE:
        raise ServingError(
            f"task name '{task[:120]}': expected 1 to 100 letters, digits, '.', '_' or '-', "
            f"starting with a letter or digit, other than '{BARE}'"
        )
    if version is not None and not VERSION.fullmatch(version):
        raise ServingError(
            f"version '{version[:80]}': expected 1 to 64 letters, digits, '.', '_' or '-'"
        )


def _no_folder(name: str) -> Path:
    raise ServingError(f"index '{name[:100]}': this registry does not accept indexes")


def _same(known: TaskRecord | None, key: str) -> str | None:
    """Return the newest version with the given bundle, if any."""
    found = [v for v, held in known.versions.items() if held == key] if known is not None else []
    return found[-1] if found else None


def _free_version(
    known: TaskRecord | None, task: str, version: str | None, *, key: str, replace: bool
) -> str:
    """Choose the new version's name.

    Raises:
        TaskExists: If the task may not be replaced, the version exists, or it was another
            bundle before it was removed.
    """
    record = known or TaskRecord()
    if record.versions and not replace:
        raise TaskExists(f"task '{task}' already exists; replace it or choose a different name")
    if version is None:
        taken = {*record.versions, *record.removed}
        number = 1 + max([record.last, *map(number_of, taken)])
        while str(number) in taken:
            number += 1
        return str(number)
    if version in record.versions:
        raise TaskExists(f"'{task}@{version}' already exists; versions are immutable")
    if record.removed.get(version, key) != key:
        raise TaskExists(
            f"'{task}@{version}' was another bundle before it was removed, and clients may still "
            "ask for that; choose a different name"
        )
    return version


def _known(records: Mapping[str, TaskRecord], task: str, version: str | None) -> TaskRecord:
    record = records.get(task)
    if record is None or not record.versions:
        raise UnknownTask(f"unknown task '{task[:100]}'; see /v1/tasks")
    if version is not None and version not in record.versions:
        raise _no_version(task, version, record)
    return record


def _no_version(task: str, version: str, record: TaskRecord) -> UnknownTask:
    names = list(record.versions)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return UnknownTask(f"task '{task}' has no version '{version[:100]}'; available: {listed}")


def _file_keys(tasks: Mapping[str, ServedTask]) -> set[str]:
    return {
        version.file.key
        for task in tasks.values()
        for version in task.versions.values()
        if version.file is not None
    }
