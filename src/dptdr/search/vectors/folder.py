"""A vector folder, memory-mapped: any number of passages, read by block or by row."""

import hashlib
import itertools
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from dptdr.errors import VectorsError
from dptdr.io.atomic import recover_folder, sha256_file
from dptdr.search.indexes.exact import BLOCK_ROWS
from dptdr.search.vectors.documents import Document, Filter, unpack_document, unpack_ids
from dptdr.search.vectors.manifest import SHARDS, Shard, StoredFile, read_manifest

_OPEN_FILES = 192
"""Memory-mapped files kept open at once; each holds a file descriptor."""


class VectorFolder:
    """The vectors of a corpus with ids and texts, on disk.

    Args:
        path: The folder that ``dptdr encode`` wrote.

    Raises:
        VectorsError: If the folder is unfinished or broken, or a file of it is missing or has
            another size than its manifest says.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        settle(self.path)
        self.manifest = read_manifest(self.path)
        self.count = self.manifest.count
        self.dim = self.manifest.origin.dim
        self._starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])
        self._open: OrderedDict[str, np.ndarray] = OrderedDict()
        self._pinned = False
        for file in self._files():
            self._check_size(file)

    def _files(self) -> Iterator[StoredFile]:
        for shard in self.manifest.shards:
            yield from shard.files

    def _check_size(self, file: StoredFile) -> None:
        path = self.file(file)
        if not path.is_file():
            raise VectorsError(
                f"{path}: missing, though the manifest lists it; encode again or copy it back"
            )
        size = path.stat().st_size
        if size != file.bytes:
            raise VectorsError(
                f"{path}: expected {file.bytes} bytes, got {size}; the file was cut short or "
                "changed, encode again or copy it back"
            )

    def file(self, file: StoredFile) -> Path:
        """Return where a file of a shard stands."""
        return self.path / SHARDS / file.name

    def pin(self) -> None:
        """Open all files now, and keep them open.

        Files are otherwise opened when they are first needed. A pinned folder goes on with what it
        was even when another folder takes its place on disk.

        Raises:
            VectorsError: If the system allows too few open files.
        """
        files = list(self._files())
        _allow_open_files(len(files) + 256)
        self._pinned = True
        for file in files:
            self._mapped(file)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check every file against its checksum, and that no id stands twice.

        Args:
            on_progress: Called with (files checked, files).

        Raises:
            VectorsError: If a file's bytes are not those that were written, or an id stands twice.
        """
        files = list(self._files())
        for number, file in enumerate(files, start=1):
            digest = sha256_file(self.file(file))
            if digest != file.sha256:
                raise VectorsError(
                    f"{self.file(file)}: expected SHA-256 {file.sha256}, got {digest}; the file "
                    "was damaged, encode again or copy it back"
                )
            if on_progress is not None:
                on_progress(number, len(files))
        self._check_ids()

    def _check_ids(self) -> None:
        seen = np.empty(self.count, dtype=np.uint64)
        for start, ids in self._id_blocks():
            seen[start : start + len(ids)] = id_hashes(unpack_ids(ids))
        seen.sort()
        doubled = seen[1:][seen[1:] == seen[:-1]]
        if not len(doubled):
            return
        # Equal hashes are suspects only: look at the ids themselves.
        met: set[str] = set()
        for _, ids in self._id_blocks():
            for identifier in unpack_ids(ids[np.isin(id_hashes(unpack_ids(ids)), doubled)]):
                if identifier in met:
                    raise VectorsError(
                        f"{self.path}: expected unique passage ids, '{identifier}' stands twice; "
                        "check the data with `dptdr data inspect` and encode again"
                    )
                met.add(identifier)

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first row and vectors of consecutive blocks, memory-mapped, in the stored dtype.

        Args:
            block_rows: Rows at most in a block; a block never spans two shards.

        Yields:
            Row number of the first vector, and the vectors.
        """
        for shard, start in zip(self.manifest.shards, self._starts.tolist(), strict=False):
            vectors = self._vectors(shard)
            for offset in range(0, shard.rows, block_rows):
                yield start + offset, vectors[offset : offset + block_rows]

    def gather(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors of some rows, in the given order, as float32.

        Args:
            rows: Row numbers; they may repeat.

        Returns:
            One vector for each row number.
        """
        if len(self.manifest.shards) == 1:
            whole = self._vectors(self.manifest.shards[0])
            picked: np.ndarray = whole[rows].astype(np.float32, copy=False)
            return picked
        found = np.empty((len(rows), self.dim), dtype=np.float32)
        for shard, places in self._places(rows):
            local = rows[places] - self._starts[shard.index]
            found[places] = self._vectors(shard)[local]
        return found

    def ids(self, rows: Int64[np.ndarray, " rows"]) -> list[str]:
        """Return the passage ids of some rows, in the given order.

        Args:
            rows: Row numbers; they may repeat.

        Returns:
            One id for each row number.
        """
        if len(self.manifest.shards) == 1:
            return unpack_ids(self._mapped(self.manifest.shards[0].ids)[rows])
        found = np.empty(len(rows), dtype=object)
        for shard, places in self._places(rows):
            packed = self._mapped(shard.ids)
            found[places] = packed[rows[places] - self._starts[shard.index]]
        return [identifier.decode("utf-8") for identifier in found]

    def all_ids(self) -> Iterator[str]:
        """Yield all passage ids in row order."""
        for _, ids in self._id_blocks():
            yield from unpack_ids(ids)

    def documents(self, rows: Sequence[int] | Iterable[int]) -> list[Document]:
        """Return the documents of some rows, in the given order.

        Args:
            rows: Row numbers.

        Returns:
            One document for each row number.
        """
        found = []
        for row in rows:
            shard = self._shard_of(int(row))
            local = int(row) - int(self._starts[shard.index])
            first, end = self._mapped(shard.offsets)[local : local + 2].tolist()
            found.append(unpack_document(self._mapped(shard.documents)[first:end].tobytes()))
        return found

    def all_documents(self) -> Iterator[Document]:
        """Yield all documents in row order."""
        for shard in self.manifest.shards:
            text = self._mapped(shard.documents)
            offsets = self._mapped(shard.offsets).tolist()
            for first, end in itertools.pairwise(offsets):
                yield unpack_document(text[first:end].tobytes())

    def rows_where(self, filters: Sequence[Filter]) -> Int64[np.ndarray, " rows"]:
        """Return the rows whose metadata passes all filters, in growing order.

        Args:
            filters: The conditions; all must hold.

        Returns:
            Row numbers.
        """
        rows = [
            row
            for row, (_, metadata) in enumerate(self.all_documents())
            if all(condition.keeps(metadata) for condition in filters)
        ]
        return np.array(rows, dtype=np.int64)

    def _id_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for shard, start in zip(self.manifest.shards, self._starts.tolist(), strict=False):
            yield start, np.asarray(self._mapped(shard.ids))

    def _shard_of(self, row: int) -> Shard:
        if not 0 <= row < self.count:
            raise IndexError(f"expected a row below {self.count}, got {row}")
        return self.manifest.shards[int(np.searchsorted(self._starts, row, side="right")) - 1]

    def _places(self, rows: np.ndarray) -> Iterator[tuple[Shard, np.ndarray]]:
        """Yield each shard that some rows lie in, and where in the list they stand."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                yield self.manifest.shards[int(numbers[places[0]])], places

    def _vectors(self, shard: Shard) -> Float[np.ndarray, "rows dim"]:
        vectors = self._mapped(shard.vectors)
        if vectors.shape != (shard.rows, self.dim):
            raise VectorsError(
                f"{self.file(shard.vectors)}: expected {shard.rows} vectors of {self.dim} numbers, "
                f"got the shape {vectors.shape}; encode again"
            )
        return vectors

    def _mapped(self, file: StoredFile) -> np.ndarray:
        known = self._open.get(file.name)
        if known is not None:
            return known
        path = self.file(file)
        try:
            if path.suffix == ".npy":
                mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                mapped = np.memmap(path, mode="r", dtype=np.uint8)
        except (ValueError, OSError) as error:
            raise VectorsError(f"{path}: cannot be read ({error}); encode again") from None
        # A plain view: every step of a memmap object costs more than that of an array.
        array = np.asarray(mapped)
        self._open[file.name] = array
        while len(self._open) > _OPEN_FILES and not self._pinned:
            self._open.popitem(last=False)
        return array


def settle(path: Path) -> None:
    """Bring back a folder that a killed process had moved aside.

    A folder may be missing for a moment while another process puts a new one in its place; so wait
    a little before taking it for killed.

    Args:
        path: The folder.
    """
    if not path.exists():
        time.sleep(0.1)
        recover_folder(path)


def _allow_open_files(wanted: int) -> None:
    """Raise this process's limit of open files where it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise VectorsError(
            f"expected to open {wanted} files, the system allows {hard} (`ulimit -Hn`); encode "
            "with a larger --shard-size"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def id_hashes(ids: Sequence[str]) -> np.ndarray:
    """Return a 64-bit hash of each id, the same in every process.

    Args:
        ids: Passage ids.

    Returns:
        One uint64 for each id.
    """
    digests = b"".join(
        hashlib.blake2b(identifier.encode("utf-8"), digest_size=8).digest() for identifier in ids
    )
    return np.frombuffer(digests, dtype=np.uint64)
