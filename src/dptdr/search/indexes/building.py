"""Building a local index: whole or not at all, by the kind that suits the corpus."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptdr.errors import VectorsError
from dptdr.io.atomic import atomic_folder, sha256_file, write_json
from dptdr.search.bm25 import Bm25Index
from dptdr.search.indexes.local import (
    FORMAT,
    FORMAT_VERSION,
    GRAPH,
    LEXICAL,
    VECTORS,
    LocalIndex,
    Options,
    faiss_settings,
    open_index,
)
from dptdr.search.indexes.rows import ExactRows, RowIndex
from dptdr.search.indexes.types import Choice, Kind, available_memory, check_kind, choose_kind
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import MANIFEST


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How a local index is built."""

    seed: int = 1234
    """Decides training samples, clusters and rotations."""
    threads: int = 0
    """Threads, 0 for all cores; with 1 the same vectors give the same bytes."""
    memory_bytes: int | None = None
    """Memory that the index may take, for ``auto``; half of what is free by default."""
    options: Options = ()
    """Options of the kind."""
    bm25: bool = False
    """Build a BM25 index over the same passages as well, for hybrid search."""


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
            if settings.bm25:
                texts = (document.passage for document in folder.all_documents())
                Bm25Index.build(texts).save(temporary / LEXICAL)
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


def _build_rows(
    folder: VectorFolder,
    kind: Kind,
    *,
    settings: BuildSettings,
    on_progress: Callable[[int, int], None] | None,
) -> RowIndex:
    if kind.name == "exact":
        return ExactRows(folder)
    from dptdr.search.indexes.faiss_index import FaissRows

    return FaissRows.build(
        folder,
        kind.name,
        settings=faiss_settings(settings.options, seed=settings.seed, threads=settings.threads),
        on_progress=on_progress,
    )


def _link_folder(source: Path, target: Path) -> None:
    """Give a folder's files a second name; copy where the file systems differ."""

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)
