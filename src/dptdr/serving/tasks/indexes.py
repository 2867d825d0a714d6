"""The index of a task: its version's own, else one given at the start."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from dptdr.errors import ServingError, VectorsError, WrongPrompt
from dptdr.io.probe import same_probe
from dptdr.serving.searching import ServedIndex, index_key
from dptdr.serving.tasks.catalogue import IndexRecord
from dptdr.serving.tasks.prompt_cache import TaskVersion


class Indexes:
    """All indexes of a server.

    Args:
        given: Task (empty: every task that fits) and folder of those at start.
        dim: Numbers in a vector of the backbone.
        probe: The backbone's probe.
        hybrid: Build BM25 in memory for indexes without one.
        folder: Returns the folder of a name that a request gave, or refuses it.

    Raises:
        VectorsError: If an index is damaged, or was made by a backbone of another size.
    """

    def __init__(
        self,
        given: Sequence[tuple[str, Path]] = (),
        *,
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
        # Open as long as a version holds it.
        self._added: weakref.WeakValueDictionary[IndexRecord, ServedIndex] = (
            weakref.WeakValueDictionary()
        )

    def _open(self, path: Path, *, task: str = "") -> ServedIndex:
        served = ServedIndex(path, task=task, hybrid=self.hybrid)
        if served.index.dim != self.dim:
            raise VectorsError(
                f"{path}: expected vectors of {self.dim} numbers, got {served.index.dim}; it was "
                "made by another backbone"
            )
        if not same_probe(served.index.origin.probe, self.probe):
            raise VectorsError(
                f"{path}: its vectors were made by a backbone that encodes otherwise; encode and "
                "index again, or was the backbone's config.json changed?"
            )
        return served

    def open(self, record: IndexRecord) -> ServedIndex:
        """Return an index of the catalogue.

        Raises:
            DptdrError: If it is missing or damaged, or another index has taken its place.
        """
        served = self._added.get(record)
        if served is None:
            path = self.folder(record.folder)
            served = self._open(path)
            # Hashed after opening: what is open is what was recorded.
            if index_key(path) != record.key:
                raise VectorsError(
                    f"index '{record.folder}' is not the one that was added; add it again"
                )
            self._added[record] = served
        return served

    def record(self, name: str) -> IndexRecord:
        """Return the catalogue's entry for an index folder."""
        return IndexRecord(name, index_key(self.folder(name)))

    def check(self, record: IndexRecord, *, version: str, fingerprint: str) -> ServedIndex:
        """Return an index if it contains the passage vectors of a version.

        Raises:
            WrongPrompt: If it does not.
        """
        served = self.open(record)
        if served.fingerprint != fingerprint:
            raise _wrong(served, version=version, fingerprint=fingerprint)
        return served

    def of(self, version: TaskVersion, *, shared: bool) -> ServedIndex | None:
        """Return the index that a version searches, if there is one.

        Args:
            version: The task's version.
            shared: Include indexes given for no particular task; false for a limited key.
        """
        if version.index is not None or version.index_error:
            return version.index
        wanted = version.fingerprints["passage"]
        fitting = [
            served
            for served in self.given
            if (shared or served.task) and served.fits(version.task, wanted)
        ]
        # One that was given for this very task goes first.
        return max(fitting, key=lambda served: bool(served.task), default=None)

    def find(self, version: TaskVersion, *, shared: bool) -> ServedIndex:
        """Return the index that a version searches.

        Raises:
            WrongPrompt: If the task's own index was made by another version.
            ServingError: If there is none.
        """
        found = self.of(version, shared=shared)
        if found is not None:
            return found
        if version.index_error:
            raise ServingError(f"the index of {version.name} cannot be read: {version.index_error}")
        for served in self.given:
            if served.task == version.task:
                raise _wrong(
                    served, version=version.name, fingerprint=version.fingerprints["passage"]
                )
        raise ServingError(
            f"no index fits {version.name}; start the server with --index {version.task}=FOLDER, "
            "or add one with POST /v1/indexes"
        )


def _wrong(served: ServedIndex, *, version: str, fingerprint: str) -> WrongPrompt:
    return WrongPrompt(
        f"index '{served.name}' holds vectors of '{served.index.origin.encoder}' with passage "
        f"fingerprint {served.fingerprint}, but {version} makes {fingerprint}; renew the index "
        "(dptdr index --refresh), or search with the version that made it"
    )
