"""Building a local index: whole or not at all, of the type that suits the corpus."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    open_index,
)
from dptdr.search.indexes.options import Options, check_options
from dptdr.search.indexes.rows import ExactRows, RowIndex
from dptdr.search.indexes.types import (
    Choice,
    IndexType,
    available_memory,
    check_size,
    choose_type,
    find_type,
)
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import MANIFEST


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How a local index is built."""

    seed: int | None = None
    """Decides training samples, clusters and rotations; types without them take none."""
    threads: int = 0
    """Threads, 0 for all cores; with 1 the same vectors give the same bytes."""
    memory_bytes: int | None = None
    """Memory that the index may take, for ``auto``; half of what is free by default."""
    options: Options = field(default_factory=dict)
    """Options of the index type, such as ``{"M": 48}``."""
    bm25: bool = False
    """Build a BM25 index over the same passages as well, for hybrid search."""


def build_index(
    folder: VectorFolder,
    *,
    out: Path,
    index_type: str = "auto",
    settings: BuildSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LocalIndex, Choice]:
    """Build an index over a vector folder; an index at ``out`` stays until the new one is whole.

    The vector folder becomes part of the index: as hard links where the disk allows, else copied.

    Args:
        folder: The vectors; checked against their checksums first.
        out: The index folder.
        index_type: Name of a type, or ``auto``.
        settings: How to build.
        on_progress: Called with (passages added, passages).

    Returns:
        The index, and why it is of this type.

    Raises:
        VectorsError: If the vectors are damaged, the type is unknown, an option has no effect or
            asks for more than the passages give, or the disk is full.
    """
    settings = settings or BuildSettings()
    out = Path(out)
    choice = Choice(index_type, "as asked for")
    if index_type == "auto":
        free = settings.memory_bytes
        choice = choose_type(
            folder.count,
            folder.dim,
            memory_bytes=available_memory() // 2 if free is None else free,
        )
        settings = replace(settings, memory_bytes=None)
    chosen = find_type(choice.index_type)
    settings = check_settings(settings, chosen, count=folder.count)
    folder.verify()
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


def check_settings(settings: BuildSettings, index_type: IndexType, *, count: int) -> BuildSettings:
    """Return settings that all have an effect on an index type.

    Args:
        settings: What was asked for.
        index_type: The type.
        count: Passages.

    Returns:
        The same with options by their names of today.

    Raises:
        VectorsError: If a setting has no effect or the passages are too few for it.
    """
    options = check_options(
        settings.options, index_type=index_type.name, accepted=index_type.options
    )
    check_size(index_type, count, options=options)
    for name, given, meant in (
        ("seed", settings.seed, index_type.seeded),
        ("memory_bytes", settings.memory_bytes, False),
    ):
        if given is not None and not meant:
            raise VectorsError(
                f"{name} has no effect on an index of type {index_type.name}; leave it out"
            )
    return replace(settings, options=options)


def _manifest(
    folder: VectorFolder, choice: Choice, *, settings: BuildSettings, graph: Path
) -> dict[str, Any]:
    """Return what the manifest says: of the settings, those that were applied."""
    made: dict[str, Any] = {}
    if choice.index_type != "exact":
        made["threads"] = settings.threads
    if find_type(choice.index_type).seeded:
        made["seed"] = _seed(settings)
    origin = folder.manifest.origin
    file = None
    if graph.is_file():
        file = {"name": GRAPH, "bytes": graph.stat().st_size, "sha256": sha256_file(graph)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "index_type": choice.index_type,
        "reason": choice.reason,
        "count": folder.count,
        "dim": folder.dim,
        "options": dict(settings.options),
        **made,
        "file": file,
        "encoder": origin.encoder,
        "backbone_fingerprint": origin.backbone_fingerprint,
        "passage_fingerprint": origin.passage_fingerprint,
        "data_fingerprint": origin.data_fingerprint,
    }


def _seed(settings: BuildSettings) -> int:
    return 1234 if settings.seed is None else settings.seed


def _build_rows(
    folder: VectorFolder,
    index_type: IndexType,
    *,
    settings: BuildSettings,
    on_progress: Callable[[int, int], None] | None,
) -> RowIndex:
    if index_type.name == "exact":
        return ExactRows(folder)
    from dptdr.search.indexes.faiss_index import FaissRows, FaissSettings

    made = FaissSettings(
        seed=_seed(settings),
        threads=settings.threads,
        **settings.options,
    )
    return FaissRows.build(folder, index_type.name, settings=made, on_progress=on_progress)


def _link_folder(source: Path, target: Path) -> None:
    """Give a folder's files a second name; copy where the file systems differ."""

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)
