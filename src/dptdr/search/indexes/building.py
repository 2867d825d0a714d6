"""Build a local index of a given type, or of one chosen for the corpus."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dptdr.errors import VectorsError
from dptdr.io.atomic import atomic_folder, sha256_file, write_json
from dptdr.io.outputs import refuse_nested
from dptdr.io.resume import claim
from dptdr.search.bm25 import HEADER, Bm25Index
from dptdr.search.indexes.local import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_FILE,
    LEXICAL,
    VECTORS,
    LocalIndex,
    check_reduction,
    open_index,
)
from dptdr.search.indexes.options import Options, check_options
from dptdr.search.indexes.quantized import FULL, QuantizedRows, Reduction, ShortVectors
from dptdr.search.indexes.recall import MIN_RECALL, measure_recall, recall_warning
from dptdr.search.indexes.row_index import ExactRows, RowIndex
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
from dptdr.search.words import AUTO, check_language


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Settings for building a local index."""

    seed: int | None = None
    """Seed for training samples, clusters and rotations; not accepted by types without them."""
    threads: int = 0
    """Number of threads, 0 for all cores; the result is byte-for-byte reproducible with 1."""
    memory_bytes: int | None = None
    """Memory budget for ``auto``; half of the free memory by default."""
    options: Options = field(default_factory=dict)
    """Options for the index type, such as ``{"M": 48}``."""
    dimensions: int | None = None
    """Search only the first dimensions of each vector, then rescore the best hits in full."""
    quantize: str | None = None
    """Search float16, int8 or binary vectors exactly, then rescore the best hits in full."""
    bm25: bool = False
    """Also build a BM25 index over the same passages, for hybrid search."""
    language: str | None = None
    """BM25 language (see :mod:`dptdr.search.words`); ``auto`` by default."""

    @property
    def reduction(self) -> Reduction:
        """How vectors are reduced for search."""
        return Reduction(self.dimensions, self.quantize)


def build_index(
    folder: VectorFolder,
    *,
    out: Path,
    index_type: str = "auto",
    settings: BuildSettings | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LocalIndex, Choice]:
    """Build an index over a vector folder, or return a complete one with the same settings.

    The vector folder becomes part of the index: hard-linked where possible, otherwise copied.

    Args:
        folder: The vectors; their checksums are verified first.
        index_type: Name of a type, or ``auto``.
        overwrite: Replace any index at ``out`` once the new one is complete.

    Raises:
        OutputError: If the index at ``out`` has different settings, or cannot be written.
        VectorsError: If the vectors are damaged, the type is unknown, or an option has no effect
            or needs more passages.
    """
    settings = settings or BuildSettings()
    refuse_nested(Path(out), folder.path)
    made = _inputs(folder, index_type, settings=settings)
    choice = Choice(index_type, "as requested")
    if index_type == "auto":
        choice = _choose(folder, settings)
        settings = replace(settings, memory_bytes=None)
    settings = check_settings(
        settings, find_type(choice.index_type), count=folder.count, dim=folder.dim
    )
    with claim(out, mark=MANIFEST, format=FORMAT) as output:
        if output.begin(made, overwrite=overwrite):
            return open_index(out), Choice(**output.result)
        folder.verify()
        with atomic_folder(Path(out)) as temporary:
            started = time.perf_counter()
            rows, choice = _build_measured(
                folder,
                choice,
                settings=settings,
                auto=index_type == "auto",
                on_progress=on_progress,
            )
            rows.save(temporary / INDEX_FILE)
            seconds = time.perf_counter() - started
            _link_folder(folder.path, temporary / VECTORS)
            if settings.bm25:
                texts = (document.passage for document in folder.all_documents())
                words = Bm25Index.build(texts, language=settings.language or AUTO)
                words.save(temporary / LEXICAL)
            write_json(
                temporary / MANIFEST,
                _manifest(folder, choice, settings=settings, index=temporary)
                | {"build_seconds": round(seconds, 3)},
            )
        output.finish(choice._asdict())
    return open_index(out, verify=False), choice


def _inputs(folder: VectorFolder, index_type: str, *, settings: BuildSettings) -> dict[str, Any]:
    """Collect the inputs and settings that determine the index."""
    used = {k: v for k, v in asdict(settings).items() if k not in ("threads", "memory_bytes")}
    if settings.language is None:
        # Earlier versions recorded it this way.
        del used["language"]
    return {
        **used,
        "passage_fingerprint": folder.manifest.origin.passage_fingerprint,
        "data_fingerprint": folder.manifest.origin.data_fingerprint,
        "vectors_sha256": folder.manifest.shards_sha256,
        "index_type": index_type,
        "options": dict(settings.options),
    }


def _choose(folder: VectorFolder, settings: BuildSettings) -> Choice:
    if settings.reduction.quantize is not None:
        if settings.memory_bytes is not None:
            raise VectorsError("memory_bytes has no effect with quantize; omit it")
        return Choice("exact", f"exact search over {settings.reduction.quantize} vectors")
    free = settings.memory_bytes
    return choose_type(
        folder.count,
        settings.reduction.dimensions or folder.dim,
        memory_bytes=available_memory() // 2 if free is None else free,
    )


def _build_measured(
    folder: VectorFolder,
    choice: Choice,
    *,
    settings: BuildSettings,
    auto: bool,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[RowIndex, Choice]:
    """Build an index and measure recall; ``auto`` tries other types until it is high enough."""
    while True:
        chosen = find_type(choice.index_type)
        rows = _build_rows(folder, chosen, settings=settings, on_progress=on_progress)
        if isinstance(rows, ExactRows):
            return rows, choice
        index = LocalIndex(
            folder.path,
            index_type=chosen,
            vectors=folder,
            rows=rows,
            reduction=settings.reduction,
        )
        recall = round(measure_recall(index, folder, seed=_seed(settings)), 4)
        choice = choice._replace(recall=recall, warning=_warning(chosen, recall, settings))
        other = chosen.more_exact
        if recall >= MIN_RECALL or not auto or other is None or settings.options:
            return rows, choice
        choice = Choice(other, f"{chosen.name} has recall@10 of only {recall:.3f}; {choice.reason}")


def _warning(index_type: IndexType, recall: float, settings: BuildSettings) -> str | None:
    advice = index_type.advice
    if settings.dimensions is not None:
        advice = f"raise dimensions (currently {settings.dimensions}); otherwise {advice}"
    return recall_warning(recall, advice=advice)


def check_settings(
    settings: BuildSettings, index_type: IndexType, *, count: int, dim: int
) -> BuildSettings:
    """Return the settings that apply to an index type, rejecting any others.

    Raises:
        VectorsError: If a setting has no effect or needs more passages.
    """
    options = check_options(
        settings.options, index_type=index_type.name, accepted=index_type.options
    )
    check_size(index_type, count, options=options)
    check_reduction(settings.reduction, index_type, dim=dim)
    for name, given, meant in (
        ("seed", settings.seed, index_type.seeded),
        ("memory_bytes", settings.memory_bytes, False),
    ):
        if given is not None and not meant:
            raise VectorsError(
                f"{name} has no effect on an index of type {index_type.name}; omit it"
            )
    if settings.language is not None:
        check_language(settings.language)
        if not settings.bm25:
            raise VectorsError("language has no effect without bm25; omit it, or enable bm25")
    return replace(settings, options=options)


def _manifest(
    folder: VectorFolder, choice: Choice, *, settings: BuildSettings, index: Path
) -> dict[str, Any]:
    """Return the index manifest with all effective settings."""
    made = {name: value for name, value in settings.reduction._asdict().items() if value}
    if choice.recall is not None:
        made["recall@10"] = choice.recall
    if choice.index_type != "exact":
        made["threads"] = settings.threads
    if find_type(choice.index_type).seeded:
        made["seed"] = _seed(settings)
    origin = folder.manifest.origin
    file, stored = None, index / INDEX_FILE
    if stored.is_file():
        file = {"name": INDEX_FILE, "bytes": stored.stat().st_size, "sha256": sha256_file(stored)}
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
        "vectors_sha256": folder.manifest.shards_sha256,
        "bm25_sha256": sha256_file(index / LEXICAL / HEADER) if settings.bm25 else None,
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
        if settings.reduction == FULL:
            return ExactRows(folder)
        return QuantizedRows.build(folder, settings.reduction)
    from dptdr.search.indexes.faiss_index import FaissRows, FaissSettings

    made = FaissSettings(
        seed=_seed(settings),
        threads=settings.threads,
        **settings.options,
    )
    vectors = folder if settings.dimensions is None else ShortVectors(folder, settings.dimensions)
    return FaissRows.build(vectors, index_type.name, settings=made, on_progress=on_progress)


def _link_folder(source: Path, target: Path) -> None:
    """Hard-link a folder's files, or copy them if it is on a different file system."""

    def link(here: str, there: str) -> None:
        try:
            os.link(here, there)
        except OSError:
            shutil.copy2(here, there)

    shutil.copytree(source, target, copy_function=link)
