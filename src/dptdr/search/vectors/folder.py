"""Memory-mapped access to a vector folder, by block or by row."""

import itertools
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from dptdr.errors import DataError, NoSuchField, VectorsError
from dptdr.io.atomic import recover_folder, sha256_file
from dptdr.io.ids import IdSet
from dptdr.io.npy import map_array
from dptdr.records import Document
from dptdr.search.exact import BLOCK_ROWS
from dptdr.search.vectors.documents import Filter, unpack_document, unpack_ids
from dptdr.search.vectors.manifest import (
    MANIFEST,
    SHARDS,
    Shard,
    StoredFile,
    read_manifest,
    refuse_link,
)

_OPEN_FILES = 192
"""Maximum number of memory-mapped files kept open; each needs a file descriptor."""


class VectorFolder:
    """The vectors, ids and texts of a corpus, on disk.

    Args:
        path: The folder that ``dptdr encode`` wrote.

    Raises:
        VectorsError: If the folder is incomplete or damaged, or a file is missing or has the wrong
            size.
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
        refuse_link(self.path / SHARDS)
        for shard in self.manifest.shards:
            self._check_rows(shard)
            for file in shard.files:
                self._check_size(file)

    def _files(self) -> Iterator[StoredFile]:
        for shard in self.manifest.shards:
            yield from shard.files

    def _check_rows(self, shard: Shard) -> None:
        """Reject more rows than the files can contain, before allocating memory."""
        row_bytes = self.dim * np.dtype(self.manifest.origin.dtype).itemsize
        if shard.vectors.bytes < shard.rows * row_bytes or shard.offsets.bytes < 8 * shard.rows:
            raise VectorsError(
                f"{self.path / MANIFEST}: shard {shard.index} lists {shard.rows:,} rows of "
                f"dimension {self.dim:,}, more than its files contain; re-encode"
            )

    def _check_size(self, file: StoredFile) -> None:
        path = self.file(file)
        refuse_link(path)
        if not path.is_file():
            raise VectorsError(
                f"{path}: listed in the manifest but missing; re-encode or restore the file"
            )
        size = path.stat().st_size
        if size != file.bytes:
            raise VectorsError(
                f"{path}: expected {file.bytes} bytes, got {size}; the file is truncated or "
                "modified, re-encode or restore it"
            )

    def file(self, file: StoredFile) -> Path:
        """Return the path of a shard's file."""
        return self.path / SHARDS / file.name

    def pin(self) -> None:
        """Open all files now and keep them open.

        Files are otherwise opened on first use. A pinned folder stays readable and unchanged even
        if it is replaced on disk.

        Raises:
            VectorsError: If the system allows too few open files.
        """
        files = list(self._files())
        _allow_open_files(len(files) + 256)
        self._pinned = True
        for shard in self.manifest.shards:
            self._vectors(shard)
            self._ids(shard)
            self._offsets(shard)
            self._mapped(shard.documents)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Verify every file's checksum, and that ids are unique.

        Raises:
            VectorsError: If a checksum does not match, or an id is duplicated.
        """
        files = list(self._files())
        for number, file in enumerate(files, start=1):
            digest = sha256_file(self.file(file))
            if digest != file.sha256:
                raise VectorsError(
                    f"{self.file(file)}: expected SHA-256 {file.sha256}, got {digest}; the file "
                    "is damaged, re-encode or restore it"
                )
            if on_progress is not None:
                on_progress(number, len(files))
        seen = IdSet()
        for identifier in self.all_ids():
            # Equal hashes may be collisions: compare the ids themselves.
            if not seen.add(identifier) and sum(i == identifier for i in self.all_ids()) > 1:
                raise VectorsError(
                    f"{self.path}: duplicate passage id '{identifier}'; check the data with "
                    "`dptdr data inspect` and re-encode"
                )

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the memory-mapped vectors (in the stored dtype) of each block.

        Args:
            block_rows: Maximum rows per block; blocks never span two shards.
        """
        for shard, start in zip(self.manifest.shards, self._starts.tolist(), strict=False):
            vectors = self._vectors(shard)
            for offset in range(0, shard.rows, block_rows):
                yield start + offset, vectors[offset : offset + block_rows]

    def gather(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows dim"]:
        """Return the vectors in the given rows, in order, as float32; rows may repeat.

        Raises:
            VectorsError: If a vector contains NaN or infinity.
        """
        if len(self.manifest.shards) == 1:
            whole = self._vectors(self.manifest.shards[0])
            found: np.ndarray = whole[rows].astype(np.float32, copy=False)
        else:
            found = np.empty((len(rows), self.dim), dtype=np.float32)
            for shard, places in self._places(rows):
                local = rows[places] - self._starts[shard.index]
                found[places] = self._vectors(shard)[local]
        # Summing is cheaper than testing each value, and NaN or infinity makes the sum non-finite.
        if not np.isfinite(found.sum()) and not np.isfinite(found).all():
            broken = np.flatnonzero(~np.isfinite(found).all(axis=1))[0]
            raise VectorsError(
                f"{self.path}: the vector in row {rows[broken]} contains NaN or infinity; re-encode"
            )
        return found

    def ids(self, rows: Int64[np.ndarray, " rows"]) -> list[str]:
        """Return the passage ids in the given rows, in order; rows may repeat."""
        if len(self.manifest.shards) == 1:
            return self._decoded(self._ids(self.manifest.shards[0])[rows])
        found = np.empty(len(rows), dtype=object)
        for shard, places in self._places(rows):
            found[places] = self._ids(shard)[rows[places] - self._starts[shard.index]]
        return self._decoded(found)

    def all_ids(self) -> Iterator[str]:
        """Yield all passage ids in row order."""
        for shard in self.manifest.shards:
            yield from self._decoded(self._ids(shard))

    def documents(self, rows: Sequence[int] | Iterable[int]) -> list[Document]:
        """Return the documents in the given rows, in order."""
        found = []
        for row in rows:
            shard = self._shard_of(int(row))
            local = int(row) - int(self._starts[shard.index])
            first, end = self._offsets(shard)[local : local + 2].tolist()
            found.append(self._document(shard, first, end, row=local))
        return found

    def all_documents(self) -> Iterator[Document]:
        """Yield all documents in row order."""
        for shard in self.manifest.shards:
            offsets = self._offsets(shard).tolist()
            for row, (first, end) in enumerate(itertools.pairwise(offsets)):
                yield self._document(shard, first, end, row=row)

    def rows_where(self, filters: Sequence[Filter]) -> Int64[np.ndarray, " rows"]:
        """Return the rows whose metadata matches all filters, in ascending order.

        Raises:
            NoSuchField: If a filter names a field that no passage has.
        """
        rows = []
        fields: set[str] = set()
        for row, (_, metadata) in enumerate(self.all_documents()):
            fields.update(metadata)
            if all(condition.keeps(metadata) for condition in filters):
                rows.append(row)
        for condition in filters:
            if condition.field not in fields and self.count:
                have = ", ".join(sorted(fields)[:20]) or "none"
                raise NoSuchField(
                    f"no passage has the metadata field '{condition.field}'; available: {have}"
                )
        return np.array(rows, dtype=np.int64)

    def _shard_of(self, row: int) -> Shard:
        if not 0 <= row < self.count:
            raise IndexError(f"row: expected a number below {self.count}, got {row}")
        return self.manifest.shards[int(np.searchsorted(self._starts, row, side="right")) - 1]

    def _places(self, rows: np.ndarray) -> Iterator[tuple[Shard, np.ndarray]]:
        """Group rows by shard; yield each shard with the positions of its rows in the list."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                yield self.manifest.shards[int(numbers[places[0]])], places

    def _vectors(self, shard: Shard) -> Float[np.ndarray, "rows dim"]:
        vectors = self._mapped(shard.vectors)
        wanted = (shard.rows, self.dim), np.dtype(self.manifest.origin.dtype)
        if (vectors.shape, vectors.dtype) != wanted:
            raise self._misfit(
                shard.vectors, vectors, f"{shard.rows} vectors of dimension {self.dim}"
            )
        return vectors

    def _ids(self, shard: Shard) -> np.ndarray:
        ids = self._mapped(shard.ids)
        if ids.shape != (shard.rows,) or ids.dtype.kind != "S":
            raise self._misfit(shard.ids, ids, f"{shard.rows} ids")
        return ids

    def _offsets(self, shard: Shard) -> Int64[np.ndarray, " offsets"]:
        offsets = self._mapped(shard.offsets)
        if offsets.shape != (shard.rows + 1,) or offsets.dtype != np.int64:
            raise self._misfit(shard.offsets, offsets, f"{shard.rows + 1} offsets")
        return offsets

    def _misfit(self, file: StoredFile, found: np.ndarray, expected: str) -> VectorsError:
        return VectorsError(
            f"{self.file(file)}: expected {expected}, got an array of shape {found.shape} and "
            f"dtype {found.dtype}; re-encode"
        )

    def _document(self, shard: Shard, first: int, end: int, *, row: int) -> Document:
        text = self._mapped(shard.documents)
        if not 0 <= first <= end <= len(text):
            raise VectorsError(
                f"{self.file(shard.offsets)}: row {row} spans bytes {first}–{end}, but "
                f"{shard.documents.name} has only {len(text):,} bytes; re-encode"
            )
        try:
            return unpack_document(text[first:end].tobytes())
        except ValueError as error:
            raise VectorsError(
                f"{self.file(shard.documents)}, row {row}: {error}; re-encode"
            ) from None

    def _decoded(self, packed: np.ndarray) -> list[str]:
        try:
            return unpack_ids(packed)
        except UnicodeDecodeError as error:
            raise VectorsError(
                f"{self.path}: expected ids in UTF-8, got {error.object[:40]!r}; re-encode"
            ) from None

    def _mapped(self, file: StoredFile) -> np.ndarray:
        known = self._open.get(file.name)
        if known is not None:
            return known
        path = self.file(file)
        try:
            if path.suffix == ".npy":
                array = map_array(path)
            else:
                array = np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
        except DataError as error:
            raise VectorsError(f"{error}; re-encode") from None
        except (OSError, ValueError) as error:
            raise VectorsError(f"{path}: cannot read the file ({error}); re-encode") from None
        self._open[file.name] = array
        while len(self._open) > _OPEN_FILES and not self._pinned:
            self._open.popitem(last=False)
        return array


def settle(path: Path) -> None:
    """Restore a folder that a killed process moved aside.

    A folder may be missing briefly while another process replaces it, so wait a little first.
    """
    if not path.exists():
        time.sleep(0.1)
        recover_folder(path)


def _allow_open_files(wanted: int) -> None:
    """Raise the process's limit on open files if needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise VectorsError(
            f"needs {wanted} open files, but the system allows {hard} (`ulimit -Hn`); re-encode "
            "with a larger --shard-size"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
