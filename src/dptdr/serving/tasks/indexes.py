"""Find the index of a task: its version's own, or one given at startup."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dptdr.errors import ServingError, VectorsError, WrongPrompt
from dptdr.io.probe import same_probe
from dptdr.serving.searching import ServedIndex, index_key
from dptdr.serving.tasks.catalogue import IndexRecord
from dptdr.serving.tasks.prompt_cache import TaskVersion


class Indexes:
    """All indexes of a server.

    Args:
        given: Pairs of task (empty for every matching task) and folder given at startup.
        keys: Expected :func:`index_key` of each of them, if known.
        dim: Dimension of the backbone's vectors.
        probe: The backbone's probe.
        hybrid: Build BM25 in memory for indexes without one.
        folder: Resolves a name from a request to a folder, or raises an error.

    Raises:
        VectorsError: If an index is damaged, has a different dimension, or was replaced.
    """

    def __init__(
        self,
        given: Sequence[tuple[str, Path]] = (),
        *,
        keys: Sequence[str] = (),
        dim: int,
        probe: Sequence[float] = (),
        hybrid: bool = False,
        folder: Callable[[str], Path],
    ) -> None:
        self.dim = dim
        self.probe = probe
        self.hybrid = hybrid
        self.folder = folder
        self.given = [self._open(path, task=task) for task, path in given]
        for (_, path), key in zip(given, keys, strict=False):
            # Hash after opening, so that the open index is the one that was given.
            if index_key(path) != key:
                raise VectorsError(
                    f"{path}: replaced since the server started; restart the server, so that all "
                    "workers search the same index"
                )
        # Stays open as long as a version refers to it.
        self._added: weakref.WeakValueDictionary[IndexRecord, ServedIndex] = (
            weakref.WeakValueDictionary()
        )

    def _open(self, path: Path, *, task: str = "") -> ServedIndex:
        served = ServedIndex(path, task=task, hybrid=self.hybrid)
        if served.index.dim != self.dim:
            raise VectorsError(
                f"{path}: expected vectors of dimension {self.dim}, got {served.index.dim}; it was "
                "made by a different backbone"
            )
        if not same_probe(served.index.origin.probe, self.probe):
            raise VectorsError(
                f"{path}: expected the backbone that made its vectors, got one that encodes "
                "differently; check whether config.json was changed, or rebuild the index"
            )
        return served

    def open(self, record: IndexRecord) -> ServedIndex:
        """Open an index from the catalogue.

        Raises:
            DptdrError: If it is missing or damaged, or has been replaced.
        """
        served = self._added.get(record)
        if served is None:
            path = self.folder(record.folder)
            served = self._open(path)
            # Hash after opening, so that the open index is the recorded one.
            if index_key(path) != record.key:
                raise VectorsError(
                    f"index '{record.folder}' has changed since it was added; add it again"
                )
            self._added[record] = served
        return served

    def unused(self, versions: Iterable[TaskVersion]) -> list[ServedIndex]:
        """Return the indexes given at startup that none of these versions may search."""
        passages = [(version.task, version.fingerprints["passage"]) for version in versions]
        return [
            served
            for served in self.given
            if not any(served.fits(*passage) for passage in passages)
        ]

    def record(self, name: str) -> IndexRecord:
        """Create the catalogue record of an index folder."""
        return IndexRecord(name, index_key(self.folder(name)))

    def check(self, record: IndexRecord, *, version: str, fingerprint: str) -> ServedIndex:
        """Open an index after checking that it contains a version's passage vectors.

        Raises:
            WrongPrompt: If it does not.
        """
        served = self.open(record)
        if served.fingerprint != fingerprint:
            raise _wrong(served, version=version, fingerprint=fingerprint)
        return served

    def of(self, version: TaskVersion, *, shared: bool) -> ServedIndex | None:
        """Return the index for a version, if any.

        Args:
            shared: Include indexes not tied to a task; false for a restricted key.
        """
        if version.index is not None or version.index_error:
            return version.index
        wanted = version.fingerprints["passage"]
        fitting = [
            served
            for served in self.given
            if (shared or served.task) and served.fits(version.task, wanted)
        ]
        # An index given for this specific task takes precedence.
        return max(fitting, key=lambda served: bool(served.task), default=None)

    def find(self, version: TaskVersion, *, shared: bool) -> ServedIndex:
        """Return the index for a version.

        Raises:
            WrongPrompt: If the task's own index was made by a different version.
            ServingError: If there is none.
        """
        found = self.of(version, shared=shared)
        if found is not None:
            return found
        if version.index_error:
            raise ServingError(f"cannot read the index of {version.name}: {version.index_error}")
        for served in self.given:
            if served.task == version.task:
                raise _wrong(
                    served, version=version.name, fingerprint=version.fingerprints["passage"]
                )
        raise ServingError(
            f"no index matches {version.name}; start the server with --index "
            f"{version.task}=FOLDER, or add one with POST /v1/indexes"
        )


def _wrong(served: ServedIndex, *, version: str, fingerprint: str) -> WrongPrompt:
    return WrongPrompt(
        f"index '{served.name}': expected passage fingerprint {fingerprint} of {version}, got "
        f"{served.fingerprint} of '{served.index.origin.encoder}'; refresh the index "
        "(dptdr index --refresh), or search with the version that made it"
    )
