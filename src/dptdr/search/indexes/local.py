"""An index in a local folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from dptdr.errors import VectorsError
from dptdr.io.atomic import sha256_file
from dptdr.io.ids import RowTable, stable_hashes
from dptdr.io.lines import describe
from dptdr.records import Document
from dptdr.search.bm25 import HEADER, Bm25Index, stored_language
from dptdr.search.exact import TopK, top_k_of_blocks
from dptdr.search.index import SearchResults, check_query_vectors
from dptdr.search.indexes.options import Options, check_options, options_of_version_1
from dptdr.search.indexes.quantized import FULL, QUANTIZATIONS, QuantizedRows, Reduction
from dptdr.search.indexes.row_index import ExactRows, RowIndex, exact_among, rescore
from dptdr.search.indexes.types import IndexType, find_type
from dptdr.search.vectors.compression import shorten
from dptdr.search.vectors.documents import Filter
from dptdr.search.vectors.folder import VectorFolder, settle
from dptdr.search.vectors.manifest import (
    MANIFEST,
    Origin,
    check_format,
    read_record,
    refuse_link,
    text,
    whole_number,
)

FORMAT = "dptdr-index"
FORMAT_VERSION = 2
VECTORS = "vectors"
INDEX_FILE = "index.bin"
LEXICAL = "bm25"

_TRIES = 5

_REDUCED_RERANK = 4
"""Candidates per hit to rescore on full vectors after a search of reduced vectors."""

_EXACT_WHEN_ALLOWED = 20_000
"""Maximum number of filtered passages that are scored exhaustively."""


class LocalIndex:
    """An index over a vector folder, which is part of the index folder.

    Args:
        recall: Recall@10 measured when the index was built.
        lexical_sha256: SHA-256 of the BM25 header; None for indexes from earlier versions.
    """

    def __init__(
        self,
        path: Path,
        *,
        index_type: IndexType,
        vectors: VectorFolder,
        rows: RowIndex,
        options: Options | None = None,
        reduction: Reduction = FULL,
        recall: float | None = None,
        lexical_sha256: str | None = None,
    ) -> None:
        self.path = path
        self._lexical_sha256 = lexical_sha256
        self.options = dict(options or {})
        self.vectors = vectors
        self.rows = rows
        self.reduction = reduction
        self.recall = recall
        self.rerank = index_type.rerank
        if reduction != FULL:
            self.rerank = max(self.rerank, _REDUCED_RERANK)
        self._type = index_type
        self._allowed: dict[tuple[Filter, ...], Int64[np.ndarray, " rows"]] = {}
        self._row_of: RowTable | None = None

    @property
    def index_type(self) -> str:
        """Name of the index type."""
        return self._type.name

    @property
    def count(self) -> int:
        """Number of passages."""
        return self.vectors.count

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.vectors.dim

    @property
    def origin(self) -> Origin:
        """Origin of the vectors."""
        return self.vectors.manifest.origin

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> SearchResults:
        """Return the best passages; see :class:`dptdr.search.index.Index`."""
        scores, rows = self.search_rows(vectors, depth=depth, filters=filters)
        ids, width = self.vectors.ids(rows.ravel()), rows.shape[1]
        return SearchResults(scores, [ids[n * width : (n + 1) * width] for n in range(len(rows))])

    def search_rows(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> TopK:
        """Return scores and row numbers, best first.

        Both have ``min(depth, count)`` columns. If an approximate search finds fewer passages for
        a query, all are searched.
        """
        queries = check_query_vectors(vectors, dim=self.dim, depth=depth)
        allowed = self.rows_where(filters) if filters else None
        candidates = self.count if allowed is None else len(allowed)
        depth = min(depth, candidates)
        if depth == 0 or not len(queries):
            nothing = (len(queries), 0)
            return np.empty(nothing, dtype=np.float32), np.empty(nothing, dtype=np.int64)
        if allowed is not None and len(allowed) <= _EXACT_WHEN_ALLOWED:
            return exact_among(self.vectors, queries, allowed=allowed, depth=depth)
        if not self.rerank:
            scores, rows = self.rows.search(queries, depth=depth, allowed=allowed)
        else:
            wanted = min(candidates, depth * self.rerank)
            short = shorten(queries, self.reduction.dimensions or self.dim)
            _, rows = self.rows.search(short, depth=wanted, allowed=allowed)
            scores, rows = rescore(self.vectors, queries, candidates=rows, depth=depth)
        # The lists or the part of the graph that were searched may hold fewer passages.
        missing = np.flatnonzero(rows[:, -1] < 0)
        if missing.size:
            scores[missing], rows[missing] = (
                top_k_of_blocks(queries[missing], self.vectors.blocks(), depth=depth)
                if allowed is None
                else exact_among(self.vectors, queries[missing], allowed=allowed, depth=depth)
            )
        return scores, rows

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Look up passages by id; see :class:`dptdr.search.index.Index`."""
        if self._row_of is None:
            self._row_of = RowTable.build(self.vectors.all_ids())
        rows = self._row_of.first_rows(stable_hashes(ids))
        names = self.vectors.ids(np.maximum(rows, 0))
        for wanted, row, name in zip(ids, rows, names, strict=True):
            if row < 0 or name != wanted:
                raise VectorsError(f"{self.path}: no passage with id '{wanted}'")
        return self.vectors.documents(rows.tolist())

    def verify(self) -> None:
        """Verify the checksums of all files: vectors, ids, texts and BM25.

        Opening an index verifies only the checksum of the index file and the sizes of the others.

        Raises:
            VectorsError: If a checksum does not match.
            DataError: If a checksum of a BM25 file does not match.
        """
        self.vectors.verify()
        if self.has_lexical:
            self.lexical(verify=True)

    @property
    def has_lexical(self) -> bool:
        """Whether there is a BM25 index."""
        return (self.path / LEXICAL).is_dir()

    @property
    def language(self) -> str | None:
        """Language of the BM25 index, or None without one."""
        return stored_language(self.path / LEXICAL) if self.has_lexical else None

    def lexical(self, *, verify: bool = False) -> Bm25Index:
        """Return the BM25 index over the same passages.

        Args:
            verify: Verify the checksums of its files.

        Raises:
            VectorsError: If none was built, or it belongs to a different index.
        """
        if not self.has_lexical:
            raise VectorsError(f"{self.path}: no BM25 index; build one with `dptdr index --bm25`")
        refuse_link(self.path / LEXICAL)
        header = self.path / LEXICAL / HEADER
        known = self._lexical_sha256
        if known and header.is_file() and sha256_file(header) != known:
            raise VectorsError(
                f"{self.path / LEXICAL}: belongs to a different index; rebuild the index"
            )
        return Bm25Index.load(self.path / LEXICAL, verify=verify)

    def rows_where(self, filters: Sequence[Filter]) -> Int64[np.ndarray, " rows"]:
        """Return the rows whose metadata matches all filters; recent answers are cached.

        Raises:
            NoSuchField: If a filter names a field that no passage has.
        """
        wanted = tuple(filters)
        if wanted not in self._allowed:
            if len(self._allowed) >= 64:
                self._allowed.clear()
            self._allowed[wanted] = self.vectors.rows_where(filters)
        return self._allowed[wanted]


def open_index(path: Path | str, *, verify: bool = True) -> LocalIndex:
    """Open an index folder.

    Args:
        path: The folder that ``dptdr index`` wrote.
        verify: Verify the checksum of the index file; for the vectors, only sizes are checked.

    Raises:
        VectorsError: If it is missing, damaged, or in an unknown format.
    """
    path = Path(path)
    for _ in range(_TRIES):
        settle(path)
        before = _identity(path)
        try:
            index = _open(path, verify=verify)
        except VectorsError:
            # Another process may have replaced the index in the meantime.
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return index
    raise VectorsError(f"{path}: replaced repeatedly while being opened; try again later")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the folder's device and inode, which change when it is replaced."""
    if not path.exists():
        return None
    status = path.stat()
    return (status.st_ino, status.st_ctime_ns)


def _open(path: Path, *, verify: bool) -> LocalIndex:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise VectorsError(
            f"{path}: expected an index folder with {MANIFEST}; create one with `dptdr index`"
        )
    record = read_record(manifest_path)
    check_format(record, path=manifest_path, expected=FORMAT, version=FORMAT_VERSION)
    try:
        index_type, options = _type_and_options(record)
    except VectorsError as error:
        raise VectorsError(f"{manifest_path}: {error}") from None
    refuse_link(path / VECTORS)
    vectors = VectorFolder(path / VECTORS)
    vectors.pin()
    for field, value in (("count", vectors.count), ("dim", vectors.dim)):
        if record.get(field) != value:
            raise VectorsError(
                f"{manifest_path}, field '{field}': expected {value} to match the vectors, got "
                f"{describe(record.get(field))}; rebuild the index"
            )
    built_over = record.get("vectors_sha256")
    if built_over is not None and built_over != vectors.manifest.shards_sha256:
        raise VectorsError(
            f"{path}: its vectors differ from those it was built over; rebuild the index"
        )
    reduction = _reduction(record, index_type, path=manifest_path, dim=vectors.dim)
    if index_type.name != "exact" or reduction != FULL:
        _check_file(path / INDEX_FILE, record.get("file"), manifest=manifest_path, verify=verify)
    rows = _load_rows(path, index_type, options=options, vectors=vectors, reduction=reduction)
    recall, words = record.get("recall@10"), record.get("bm25_sha256")
    if recall is not None and (type(recall) not in (int, float) or not 0 <= recall <= 1):
        raise VectorsError(
            f"{manifest_path}, field 'recall@10': expected a number from 0 to 1, got "
            f"{describe(recall)}; rebuild the index"
        )
    return LocalIndex(
        path,
        index_type=index_type,
        vectors=vectors,
        rows=rows,
        options=options,
        reduction=reduction,
        recall=None if recall is None else float(recall),
        lexical_sha256=None if words is None else text(record, "bm25_sha256", manifest_path),
    )


def _reduction(record: dict[str, Any], index_type: IndexType, *, path: Path, dim: int) -> Reduction:
    try:
        return check_reduction(
            Reduction(record.get("dimensions"), record.get("quantize")), index_type, dim=dim
        )
    except VectorsError as error:
        raise VectorsError(f"{path}: {error}") from None


def check_reduction(reduction: Reduction, index_type: IndexType, *, dim: int) -> Reduction:
    """Return a reduction after checking that the index type supports it.

    Raises:
        VectorsError: If it has no effect or is out of bounds.
    """
    kept, form = reduction
    if kept is not None and (type(kept) is not int or not 1 <= kept < dim):
        raise VectorsError(
            f"option dimensions: expected a number from 1 to {dim - 1} (vectors have {dim}), got "
            f"{kept if type(kept) is int else describe(kept)}"
        )
    if form is not None and form not in QUANTIZATIONS:
        shown = f"'{form}'" if isinstance(form, str) else describe(form)
        raise VectorsError(
            f"option quantize: expected one of {', '.join(QUANTIZATIONS)}, got {shown}"
        )
    if form is not None and index_type.name != "exact":
        raise VectorsError(
            f"option quantize has no effect on an index of type {index_type.name}; omit it, "
            "or use exact"
        )
    return reduction


def _type_and_options(record: dict[str, Any]) -> tuple[IndexType, Options]:
    """Read index type and options from a manifest, translating the names of version 1."""
    former = record["format_version"] == 1
    index_type = find_type(record.get("kind" if former else "index_type"))
    options = record.get("options")
    if not isinstance(options, dict):
        raise VectorsError(f"field 'options': expected an object, got {describe(options)}")
    if former:
        options = options_of_version_1(options, accepted=index_type.options)
    return index_type, check_options(
        options, index_type=index_type.name, accepted=index_type.options
    )


def _check_file(path: Path, expected: object, *, manifest: Path, verify: bool) -> None:
    if not isinstance(expected, dict):
        raise VectorsError(
            f"{manifest}, field 'file': expected an object, got {describe(expected)}; rebuild the "
            "index"
        )
    expected_bytes = whole_number(expected, "bytes", path=manifest)
    refuse_link(path)
    size = path.stat().st_size if path.is_file() else -1
    if size != expected_bytes:
        came = "no such file" if size < 0 else f"got {size}"
        raise VectorsError(
            f"{path}: expected {expected_bytes} bytes, {came}; the file is truncated or "
            "modified, rebuild the index"
        )
    if verify and (digest := sha256_file(path)) != text(expected, "sha256", manifest):
        raise VectorsError(
            f"{path}: expected SHA-256 {expected['sha256']}, got {digest}; the file is damaged, "
            "rebuild the index"
        )


def _load_rows(
    path: Path,
    index_type: IndexType,
    *,
    options: Options,
    vectors: VectorFolder,
    reduction: Reduction,
) -> RowIndex:
    if index_type.name == "exact":
        if reduction == FULL:
            return ExactRows(vectors)
        return QuantizedRows.load(
            path / INDEX_FILE, reduction, count=vectors.count, dim=vectors.dim
        )
    from dptdr.search.indexes.faiss_index import FaissRows, FaissSettings

    return FaissRows.load(
        path / INDEX_FILE,
        index_type.name,
        settings=FaissSettings(**options),
        count=vectors.count,
        dim=reduction.dimensions or vectors.dim,
    )
