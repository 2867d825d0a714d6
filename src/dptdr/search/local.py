"""An index in a folder of this machine: built, saved whole or not at all, opened, searched."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from dptdr.errors import VectorsError
from dptdr.files import atomic_folder, recover_folder, sha256_file, write_json
from dptdr.search.documents import Document, Filter
from dptdr.search.index import Found, check_query_vectors
from dptdr.search.kinds import Choice, Kind, available_memory, check_kind, choose_kind
from dptdr.search.manifest import MANIFEST, Origin, check_format, read_record
from dptdr.search.rows import ExactRows, RowIndex, exact_among, rescore
from dptdr.search.vectors import VectorFolder

FORMAT = "dptdr-index"
FORMAT_VERSION = 1
VECTORS = "vectors"
GRAPH = "index.bin"

_EXACT_WHEN_ALLOWED = 20_000
"""Filters that leave at most so many passages are answered by scoring all of those."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How a local index is built."""

    seed: int = 1234
    """Decides training samples, clusters and rotations."""
    threads: int = 0
    """Threads, 0 for all cores; with 1 the same vectors give the same bytes."""
    memory_bytes: int | None = None
    """Memory that the index may take, for ``auto``; half of what is free by default."""
    options: tuple[tuple[str, int], ...] = ()
    """Options of the kind, such as ``(("links", 48), ("probes", 64))``."""


class LocalIndex:
    """An index over a vector folder; the folder is part of it.

    Args:
        path: The index folder, for messages.
        kind: Kind of the index.
        vectors: Full vectors, ids and texts.
        rows: What finds rows.
    """

    def __init__(self, path: Path, *, kind: Kind, vectors: VectorFolder, rows: RowIndex) -> None:
        self.path = path
        self.vectors = vectors
        self.rows = rows
        self.rerank = kind.rerank
        self._kind = kind
        self._allowed: dict[tuple[Filter, ...], Int64[np.ndarray, " rows"]] = {}
        self._row_of: dict[str, int] | None = None

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return self._kind.name

    @property
    def count(self) -> int:
        """Passages in it."""
        return self.vectors.count

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.vectors.dim

    @property
    def origin(self) -> Origin:
        """What made the vectors."""
        return self.vectors.manifest.origin

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> Found:
        """Return the best passages; see :class:`dptdr.search.index.Index`."""
        scores, rows = self.search_rows(vectors, depth=depth, filters=filters)
        ids = self.vectors.ids(rows.ravel()) if rows.size and (rows >= 0).all() else None
        if ids is not None:
            width = rows.shape[1]
            return Found(scores, [ids[at : at + width] for at in range(0, len(ids), width)])
        return Found(scores, [self.vectors.ids(row[row >= 0]) for row in rows])

    def search_rows(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> tuple[Float32[np.ndarray, "queries depth"], Int64[np.ndarray, "queries depth"]]:
        """Return scores and row numbers, best first; row -1 where a query has fewer hits.

        Args:
            vectors: One row for each query.
            depth: Hits wanted for each query, at least 1.
            filters: Conditions on metadata; all must hold.

        Returns:
            Scores and rows, with at most ``min(depth, count)`` columns.
        """
        queries = check_query_vectors(vectors, dim=self.dim, depth=depth)
        allowed = self._allowed_rows(tuple(filters)) if filters else None
        candidates = self.count if allowed is None else len(allowed)
        depth = min(depth, candidates)
        if depth == 0:
            nothing = (len(queries), 0)
            return np.empty(nothing, dtype=np.float32), np.empty(nothing, dtype=np.int64)
        if allowed is not None and (
            len(allowed) <= _EXACT_WHEN_ALLOWED or not self.rows.can_filter
        ):
            return exact_among(self.vectors, queries, allowed=allowed, depth=depth)
        if not self.rerank:
            return self.rows.search(queries, depth=depth, allowed=allowed)
        wanted = min(candidates, depth * self.rerank)
        _, rows = self.rows.search(queries, depth=wanted, allowed=allowed)
        return rescore(self.vectors, queries, candidates=rows, depth=depth)

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return passages with their texts; see :class:`dptdr.search.index.Index`."""
        if self._row_of is None:
            self._row_of = {name: row for row, name in enumerate(self.vectors.all_ids())}
        missing = [identifier for identifier in ids if identifier not in self._row_of]
        if missing:
            raise VectorsError(f"{self.path}: no passage has the id '{missing[0]}'")
        return self.vectors.documents([self._row_of[identifier] for identifier in ids])

    def _allowed_rows(self, filters: tuple[Filter, ...]) -> Int64[np.ndarray, " rows"]:
        if filters not in self._allowed:
            if len(self._allowed) >= 64:
                self._allowed.clear()
            self._allowed[filters] = self.vectors.rows_where(filters)
        return self._allowed[filters]


def build_index(
    folder: VectorFolder,
    *,
    out: Path,
    kind: str = "auto",
    settings: BuildSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LocalIndex, Choice]:
    """Build an index over a vector folder; an index at ``out`` stays until the new one is whole.

    The vector folder becomes part of the index: as hard links where the disk allows, else copied.

    Args:
        folder: The vectors; checked against their checksums first.
        out: The index folder.
        kind: Name of a kind, or ``auto``.
        settings: How to build.
        on_progress: Called with (passages added, passages).

    Returns:
        The index, and why it is of this kind.

    Raises:
        VectorsError: If the vectors are damaged, the kind is unknown, or the disk is full.
    """
    settings = settings or BuildSettings()
    out = Path(out)
    folder.verify()
    choice = Choice(kind, "as asked for")
    if kind == "auto":
        free = settings.memory_bytes
        choice = choose_kind(
            folder.count,
            folder.dim,
            memory_bytes=available_memory() // 2 if free is None else free,
        )
    chosen = check_kind(choice.kind)
    started = time.perf_counter()
    try:
        with atomic_folder(out) as temporary:
            rows = _build_rows(folder, chosen, settings=settings, on_progress=on_progress)
            rows.save(temporary / GRAPH)
            seconds = time.perf_counter() - started
            _link_folder(folder.path, temporary / VECTORS)
            write_json(
                temporary / MANIFEST,
                _manifest(folder, choice, settings=settings, graph=temporary / GRAPH)
                | {"build_seconds": round(seconds, 3)},
            )
    except OSError as error:
        raise VectorsError(
            f"{out}: cannot be written ({error.strerror or error}); what stood there is unchanged, "
            "make room and build again"
        ) from error
    return open_index(out, verify=False), choice


def _manifest(
    folder: VectorFolder, choice: Choice, *, settings: BuildSettings, graph: Path
) -> dict[str, Any]:
    origin = folder.manifest.origin
    file = None
    if graph.is_file():
        file = {"name": GRAPH, "bytes": graph.stat().st_size, "sha256": sha256_file(graph)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": choice.kind,
        "reason": choice.reason,
        "count": folder.count,
        "dim": folder.dim,
        "seed": settings.seed,
        "threads": settings.threads,
        "options": dict(settings.options),
        "file": file,
        "encoder": origin.encoder,
        "backbone_fingerprint": origin.backbone_fingerprint,
        "passage_fingerprint": origin.passage_fingerprint,
        "data_fingerprint": origin.data_fingerprint,
    }


def open_index(path: Path | str, *, verify: bool = True) -> LocalIndex:
    """Open an index folder.

    Args:
        path: The folder that ``dptdr index`` wrote.
        verify: Check the index file against its checksum; the vectors are checked for their size.

    Returns:
        The index, ready to search.

    Raises:
        VectorsError: If it is missing, damaged, or of an unknown format.
    """
    path = Path(path)
    recover_folder(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise VectorsError(
            f"{path}: expected an index folder with {MANIFEST}; make it with `dptdr index`"
        )
    record = read_record(manifest_path)
    check_format(record, path=manifest_path, expected=FORMAT, version=FORMAT_VERSION)
    kind = check_kind(str(record.get("kind")))
    vectors = VectorFolder(path / VECTORS)
    for field, value in (("count", vectors.count), ("dim", vectors.dim)):
        if record.get(field) != value:
            raise VectorsError(
                f"{manifest_path}, field '{field}': expected {value} as in the vectors, got "
                f"{record.get(field)!r}; build the index again"
            )
    file = record.get("file")
    if file is not None:
        _check_file(path / GRAPH, file, verify=verify)
    return LocalIndex(
        path, kind=kind, vectors=vectors, rows=_load_rows(path, kind, record, vectors)
    )


def _check_file(path: Path, expected: dict[str, Any], *, verify: bool) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size != expected["bytes"]:
        came = "no such file" if size < 0 else f"got {size}"
        raise VectorsError(
            f"{path}: expected {expected['bytes']} bytes, {came}; the file was cut short or "
            "changed, build the index again"
        )
    if verify and (digest := sha256_file(path)) != expected["sha256"]:
        raise VectorsError(
            f"{path}: expected SHA-256 {expected['sha256']}, got {digest}; the file was damaged, "
            "build the index again"
        )


def _build_rows(
    folder: VectorFolder,
    kind: Kind,
    *,
    settings: BuildSettings,
    on_progress: Callable[[int, int], None] | None,
) -> RowIndex:
    if kind.name == "exact":
        return ExactRows(folder)
    if kind.name == "usearch":
        from dptdr.search.usearchrows import UsearchRows

        return UsearchRows.build(folder, threads=settings.threads, on_progress=on_progress)
    from dptdr.search.faissrows import FaissRows

    return FaissRows.build(
        folder, kind.name, settings=_faiss_settings(settings), on_progress=on_progress
    )


def _load_rows(path: Path, kind: Kind, record: dict[str, Any], vectors: VectorFolder) -> RowIndex:
    if kind.name == "exact":
        return ExactRows(vectors)
    if kind.name == "usearch":
        from dptdr.search.usearchrows import UsearchRows

        return UsearchRows.load(path / GRAPH)
    from dptdr.search.faissrows import FaissRows

    settings = BuildSettings(options=tuple((record.get("options") or {}).items()))
    return FaissRows.load(path / GRAPH, _faiss_settings(settings))


def _faiss_settings(settings: BuildSettings) -> Any:
    from dptdr.search.faissrows import FaissSettings

    try:
        return replace(
            FaissSettings(seed=settings.seed, threads=settings.threads), **dict(settings.options)
        )
    except TypeError:
        known = ", ".join(asdict(FaissSettings()))
        raise VectorsError(
            f"expected index options out of {known}, got {json.dumps(dict(settings.options))}"
        ) from None


def _link_folder(source: Path, target: Path) -> None:
    """Give a folder's files a second name; copy where the file systems differ."""

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)
