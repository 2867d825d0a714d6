"""The registry: prompts of all tasks on one backbone, changed while requests run.

A request asks the registry once and keeps what it got: a :class:`TaskVersion` never changes, so no
request sees half of an exchange. Everything is verified before it becomes visible.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptdr.errors import BundleError, ServingError
from dptdr.model.backbone import Backbone, Side
from dptdr.model.bundle import read_manifest
from dptdr.model.encoder import Encoder, Limits
from dptdr.serving.engine.forward import Forward
from dptdr.serving.packing import PromptRows
from dptdr.serving.tasks.catalogue import Catalogue, TaskRecord, bundle_key
from dptdr.serving.tasks.prompt_cache import PromptCache, PromptFile, TaskVersion
from dptdr.serving.tasks.validation import Verifier, deep_prompt_config

BARE = "backbone"
"""Name under which the backbone itself is served."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


_NEVER = (-1, -1, -1)


class UnknownTask(ServingError):
    """No such task or version."""


class TaskExists(ServingError):
    """A task or version of this name is there already."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task with its versions."""

    record: TaskRecord
    versions: Mapping[str, TaskVersion] = field(default_factory=dict)


class TaskRegistry:
    """Tasks of one backbone: look up, add, replace, remove, roll back.

    Args:
        forward: The backbone's forward pass, to verify bundles with.
        state: State folder, shared by the workers of a server.
        budget_bytes: Most bytes of prompts kept in memory.
    """

    def __init__(self, forward: Forward, *, state: Path, budget_bytes: int = 1 << 30) -> None:
        self.forward = forward
        self.backbone: Backbone = forward.backbone
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
        self._tasks: Mapping[str, Task] = {}
        self._seen: tuple[int, int, int] = _NEVER
        self._lock = threading.RLock()
        self.broken: dict[str, str] = {}
        self.unreadable = ""
        self.refresh()

    def resolve(self, name: str) -> TaskVersion:
        """Return what ``task`` or ``task@version`` means now.

        Args:
            name: The name; ``backbone`` is the bare backbone.

        Returns:
            The version; it stays valid for its holder whatever happens to the task.

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
        found = task.versions.get(version if at else task.record.default)
        if found is None:
            wanted = version if at else task.record.default
            if wanted in task.record.versions:
                raise UnknownTask(
                    f"the server's copy of '{task_name}@{wanted}' is damaged; add its bundle again"
                )
            raise UnknownTask(
                f"task '{task_name}' has no version '{wanted[:100]}'; it has {_listed(task)}"
            )
        return found

    def tasks(self) -> dict[str, Task]:
        """Return all tasks by name."""
        self.refresh()
        return dict(self._tasks)

    def prompt(self, version: TaskVersion, side: Side) -> PromptRows | None:
        """Return the rows of one side of a version."""
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
    ) -> TaskVersion:
        """Verify a bundle and make it a version of a task.

        Args:
            task: The task's name.
            bundle: The bundle's folder; it is copied and may change or go afterwards.
            version: The version's name; the next number by default.
            default: Whether the bare name shall mean this version from now on.
            replace: Whether the task may be there already.
            reuse: Whether to return a version that holds this very bundle, if there is one.

        Returns:
            The new version.

        Raises:
            TaskExists: If the task (without ``replace``) or the version is there already.
            ServingError: If a name is not allowed, or the bundle cannot be served beside others.
            BundleError: If the bundle is broken or without effect.
            WrongBackbone: If it belongs to another backbone.
        """
        check_names(task, version)
        if reuse:
            found = self._same(self.tasks(), task, bundle_key(bundle))
            # A version whose copy is damaged is not among them: it is copied again below.
            if found is not None and found in self._tasks[task].versions:
                return self.resolve(f"{task}@{found}")
        self._check_free(self.tasks(), task, version, replace=replace)
        key = bundle_key(bundle)
        manifest = self.verifier.verify(bundle)
        with self._lock, self.catalogue.changing() as tasks:
            if self.catalogue.keep(bundle, weights_file=manifest.weights_file) != key:
                raise BundleError(f"{bundle}: the bundle changed while it was added; try again")
            # Another worker may have been quicker.
            same = self._same(tasks, task, key) if reuse else None
            named = same or self._check_free(tasks, task, version, replace=replace)
            entry = tasks.get(task, TaskRecord(default=named))
            if same is not None:
                # Every worker opens the new copy.
                self.catalogue.file.touch()
            else:
                first = default or not entry.versions
                tasks[task] = entry.with_version(named, key=key, default=first)
        return self.resolve(f"{task}@{named}")

    @staticmethod
    def _same(tasks: Mapping[str, Any], task: str, key: str) -> str | None:
        """Return the newest version that holds a bundle, if any does."""
        known = tasks.get(task)
        entry = known.record if isinstance(known, Task) else known
        if entry is None:
            return None
        found = [version for version, held in entry.versions.items() if held == key]
        return found[-1] if found else None

    def _check_free(
        self, tasks: Mapping[str, Any], task: str, version: str | None, *, replace: bool
    ) -> str:
        """Return the new version's name, if task and version may be added."""
        known = tasks.get(task)
        versions: Mapping[str, Any] = known.versions if known is not None else {}
        if known is not None and not replace:
            raise TaskExists(f"task '{task}' is there already; replace it or choose another name")
        if version is None:
            number = 1 + max((int(v) for v in versions if v.isdigit() and len(v) < 10), default=0)
            while str(number) in versions:
                number += 1
            return str(number)
        if version in versions:
            raise TaskExists(f"'{task}@{version}' is there already; versions never change")
        return version

    def remove(self, task: str, *, version: str | None = None) -> None:
        """Remove a task, or one version of it that is not the default.

        Requests that hold the version finish with it.

        Raises:
            UnknownTask: If there is no such task or version.
            ServingError: If the version is the default beside others.
        """
        with self._lock, self.catalogue.changing() as tasks:
            entry = self._entry(tasks, task, version)
            if version is None or len(entry.versions) == 1:
                del tasks[task]
            elif version == entry.default:
                raise ServingError(
                    f"'{task}@{version}' is the default; make another version the default first, "
                    "or remove the whole task"
                )
            else:
                tasks[task] = entry.without(version)
        self.refresh()

    def set_default(self, task: str, version: str) -> TaskVersion:
        """Let the bare name mean another version, at once for all requests that come.

        Raises:
            UnknownTask: If there is no such task or version.
        """
        with self._lock, self.catalogue.changing() as tasks:
            entry = self._entry(tasks, task, version)
            if version != entry.default:
                history = (*entry.history, entry.default)
                tasks[task] = entry.with_default(version, history=history)
        return self.resolve(task)

    def rollback(self, task: str) -> TaskVersion:
        """Let the bare name mean the former default again.

        Raises:
            UnknownTask: If there is no such task.
            ServingError: If there is no former default.
        """
        with self._lock, self.catalogue.changing() as tasks:
            entry = self._entry(tasks, task, None)
            if not entry.history:
                raise ServingError(
                    f"task '{task}' had no other default than '{entry.default}'; there is nothing "
                    "to go back to"
                )
            tasks[task] = entry.with_default(entry.history[-1], history=entry.history[:-1])
        return self.resolve(task)

    @staticmethod
    def _entry(tasks: Mapping[str, TaskRecord], task: str, version: str | None) -> TaskRecord:
        entry = tasks.get(task)
        if entry is None:
            raise UnknownTask(f"unknown task '{task}'")
        if version is not None and version not in entry.versions:
            raise UnknownTask(
                f"task '{task}' has no version '{version}'; it has {', '.join(entry.versions)}"
            )
        return entry

    def refresh(self) -> None:
        """Take over what another worker has changed; one ``stat`` where nothing has."""
        if self.catalogue.signature() == self._seen:
            return
        with self._lock:
            signature = self.catalogue.signature()
            if signature == self._seen:
                return
            try:
                entries = self.catalogue.read()
            except ServingError as error:
                if self._seen == _NEVER:
                    raise
                # What is in memory goes on being served.
                self.unreadable = str(error)
                self._seen = signature
                return
            self.unreadable = ""
            tasks: dict[str, Task] = {}
            self.broken = {}
            for name, entry in entries.items():
                known = self._tasks.get(name)
                whole = known is not None and set(known.versions) == set(entry.versions)
                if known is not None and known.record == entry and whole:
                    tasks[name] = known
                else:
                    tasks[name] = Task(record=entry, versions=self._versions(name, entry, known))
            gone = _keys(self._tasks) - _keys(tasks)
            self._tasks = tasks
            self._seen = signature
        if gone:
            self.hot.forget(gone)

    def _versions(self, name: str, entry: TaskRecord, known: Task | None) -> dict[str, TaskVersion]:
        versions = {}
        for version, key in entry.versions.items():
            old = None if known is None else known.versions.get(version)
            if old is not None and old.file is not None and old.file.key == key:
                versions[version] = old
                continue
            try:
                versions[version] = self._open(name, version, key, entry)
            except (BundleError, ServingError) as error:
                # One damaged copy must not take the other tasks down.
                self.broken[f"{name}@{version}"] = str(error)
        return versions

    def _open(self, task: str, version: str, key: str, entry: TaskRecord) -> TaskVersion:
        folder = self.catalogue.bundle(key)
        manifest = read_manifest(folder)
        self.verifier.check_backbone(manifest, folder)
        config = deep_prompt_config(manifest, folder)
        names: dict[Side, str | None] = {"query": "shared", "passage": "shared"}
        if config.sharing == "untied":
            names = {"query": "query", "passage": "passage"}
        elif config.sharing == "query-only":
            names["passage"] = None
        return TaskVersion(
            task=task,
            version=version,
            limits=Limits(**manifest.limits),
            prompts=names,
            fingerprints={
                "query": manifest.query_fingerprint,
                "passage": manifest.passage_fingerprint,
            },
            config=config,
            file=PromptFile(folder / manifest.weights_file, key=key),
            manifest=manifest,
            added=entry.added.get(version, ""),
        )


def check_names(task: str, version: str | None) -> None:
    """Refuse names that could not stand in an address, or mean something else there.

    Raises:
        ServingError: If a name is not allowed.
    """
    if not _NAME.fullmatch(task) or task == BARE:
        raise ServingError(
            f"task name '{task[:120]}': expected 1 to 100 letters, digits, '.', '_' and '-', "
            f"starting with a letter or digit, and not '{BARE}'"
        )
    if version is not None and not _VERSION.fullmatch(version):
        raise ServingError(
            f"version '{version[:80]}': expected 1 to 64 letters, digits, '.', '_' and '-'"
        )


def _listed(task: Task) -> str:
    names = list(task.versions)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _keys(tasks: Mapping[str, Task]) -> set[str]:
    return {
        version.file.key
        for task in tasks.values()
        for version in task.versions.values()
        if version.file is not None
    }
