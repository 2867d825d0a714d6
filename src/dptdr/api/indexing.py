"""Build, refresh and open indexes."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr.api.encoding import encode
from dptdr.api.inputs import AnyData, AnyPath, data_folder, phases, resolve_device
from dptdr.api.task import AnyEncoder, Encoder, loaded
from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.errors import ConfigError
from dptdr.io.outputs import refuse_nested, try_outputs
from dptdr.search.index import check_encoder
from dptdr.search.indexes.building import BuildSettings
from dptdr.search.indexes.building import build_index as build
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.indexes.local import open_index as open_local
from dptdr.search.indexes.recall import recall_warning
from dptdr.search.indexes.refresh import Refreshed
from dptdr.search.indexes.refresh import refresh_index as refresh
from dptdr.search.rerank import cross_encoder
from dptdr.search.retriever import SearchIndex
from dptdr.search.stores.addresses import load_database, open_database
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import MANIFEST

_DATABASE_OPTIONS = ("M", "ef_construction", "links", "build_width")
"""Options for an index in a database; the last two are former names."""


@checked
def build_index(
    data: AnyData,
    encoder: AnyEncoder | None = None,
    *,
    out: AnyPath,
    vectors: AnyPath | None = None,
    index_type: str | None = None,
    options: Mapping[str, int] | None = None,
    dimensions: int | None = None,
    quantize: str | None = None,
    bm25: bool = False,
    language: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    database: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> SearchIndex:
    """Build an index over data, or over a vector folder written by ``dptdr.encode``.

    Args:
        data: A vector folder, or data as for ``dptdr.encode``, which is encoded first.
        encoder: Encodes the passages, and the queries of later searches.
        out: The index folder, or the index's name in ``database``.
        vectors: Folder for the vectors of ``data``; ``OUT.vectors`` by default.
        index_type: ``auto`` (the default) chooses by corpus size and memory; or a type by name,
            such as ``exact`` or ``hnsw``; ``dptdr.search.indexes.types.INDEX_TYPES`` has all.
        options: Options of the type, such as ``{"M": 48, "ef_search": 200}``.
        dimensions: Search only the first dimensions, then rescore the best hits in full.
        quantize: Search ``float16``, ``int8`` or ``binary`` vectors exactly, then rescore the best
            hits in full.
        bm25: Also build a BM25 index, for hybrid search.
        language: BM25 language, such as ``german``; detected by default.
        seed: Seed for samples, clusters and rotations; only for types with inverted lists.
        threads: Number of threads, by default all cores; the result is byte-for-byte reproducible
            with 1.
        memory_bytes: Memory budget for ``auto``; half of the free memory by default.
        database: Load the vectors into this database instead: ``postgresql://USER@HOST/DATABASE``,
            ``http://HOST:6333`` (Qdrant) or ``qdrant:FOLDER``. Only the options ``M`` and
            ``ef_construction`` apply; any previous index with the name serves until the load is
            complete.
        overwrite: Replace any existing index, and vectors of ``data``.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        progress: Show progress on standard error.

    Returns:
        The index, which can search texts if an encoder was given.
    """
    settings = _build_settings(
        seed=seed,
        threads=threads,
        memory_bytes=memory_bytes,
        options=options,
        dimensions=dimensions,
        quantize=quantize,
        bm25=bm25,
        language=language,
    )
    if database is None:
        try_outputs(Path(out), folders=True, inputs=[data])
    else:
        _refuse_beside_database(index_type=index_type, overwrite=overwrite, settings=settings)
    is_vectors = isinstance(data, Path | str) and (Path(data) / MANIFEST).is_file()
    reject_unused_arguments({"device": device != "auto" and encoder is None}, "without an encoder")
    reject_unused_arguments({"vectors": is_vectors and vectors is not None}, "with a vector folder")
    asker = None if encoder is None else loaded(encoder, device=device, fast=True)
    if is_vectors:
        folder = Path(str(data))
        if asker is not None:
            # Checked again by the index, but a mismatch must not replace one.
            check_encoder(VectorFolder(folder).manifest.origin, asker, where=folder)
    elif asker is None:
        if isinstance(data, Path | str) and not (Path(data) / "corpus.jsonl").is_file():
            # Its error explains what a vector folder is and how to create one.
            VectorFolder(Path(data))
        raise ConfigError("expected an encoder for the data folder, got none")
    else:
        folder = Path(vectors) if vectors is not None else Path(f"{out}.vectors")
        if database is None:
            refuse_nested(Path(out), folder)
        encode(data, asker, out=folder, overwrite=overwrite, progress=progress)
    if database is not None:
        with phases(progress)("load") as on_progress:
            stored = load_database(
                VectorFolder(folder),
                address=database,
                name=str(out),
                options=settings.options,
                on_progress=on_progress,
            )
        if stored.recall is not None:
            _warn(recall_warning(stored.recall, advice="raise M or ef_construction"))
        return SearchIndex(stored, asker, where=out)
    with phases(progress)("index") as on_progress:
        index, choice = build(
            VectorFolder(folder),
            out=Path(out),
            index_type=index_type or "auto",
            settings=settings,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _warn(choice.warning)
    return SearchIndex(index, asker, where=out, choice=choice)


def _build_settings(
    *, threads: int | None = None, options: Mapping[str, int] | None = None, **others: Any
) -> BuildSettings:
    check_counts(threads=threads, memory_bytes=others.get("memory_bytes"))
    return checked(BuildSettings)(threads=threads or 0, options=options or {}, **others)


def _refuse_beside_database(
    *, index_type: str | None, overwrite: bool, settings: BuildSettings
) -> None:
    """Reject options that have no effect on a database."""
    given: dict[str, Any] = {
        "index_type": index_type,
        "overwrite": overwrite,
        **{
            name: getattr(settings, name)
            for name in ("dimensions", "quantize", "bm25", "language", "seed")
        },
        "threads": settings.threads,
        "memory_bytes": settings.memory_bytes,
        **{name: True for name in settings.options if name not in _DATABASE_OPTIONS},
    }
    reject_unused_arguments(given, "with a database")


@checked
def refresh_index(
    data: AnyData,
    encoder: AnyEncoder,
    *,
    vectors: AnyPath,
    out: AnyPath,
    index_type: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Refreshed:
    """Encode changed passages (or all, if the prompt has changed) and rebuild the index.

    The old vectors and index serve until both are replaced.

    Args:
        data: The current data.
        encoder: The current encoder.
        vectors: The vector folder to refresh.
        out: The index folder to refresh.
        **settings: Settings of ``dptdr.build_index``, such as ``bm25``; by default those of the
            old index.
    """
    inputs = [data, encoder]
    try_outputs(Path(vectors), folders=True, inputs=inputs, suffix=".partial")
    try_outputs(Path(out), folders=True, inputs=inputs)
    with data_folder(data) as folder, phases(progress)("encode") as on_progress:
        done = refresh(
            loaded(encoder, device=device, fast=True),
            data=folder,
            vectors=Path(vectors),
            index=Path(out),
            index_type=index_type,
            settings=_build_settings(**settings),
            on_progress=on_progress,
        )
    _warn(done.warning)
    return done


def _warn(warning: str | None) -> None:
    if warning is not None:
        warnings.warn(warning, stacklevel=3)


def _asker(encoder: AnyEncoder, *, device: str, shared: bool) -> Encoder:
    """Load a query encoder; ``device`` may be meant for another model alone."""
    if shared and isinstance(encoder, Encoder):
        return encoder
    return loaded(encoder, device=device)


@checked
def open_index(
    path: AnyPath,
    encoder: AnyEncoder | None = None,
    *,
    database: str | None = None,
    hybrid: str | None = None,
    dense_weight: float = 0.5,
    rerank: str | None = None,
    rerank_top: int = 50,
    device: str = "auto",
) -> SearchIndex:
    """Open an index.

    Args:
        path: The index folder, or the index's name in ``database``.
        encoder: Query encoder.
        database: Address of the PostgreSQL or Qdrant database.
        hybrid: Fuse with BM25 by ``rrf``, ``min-max`` or ``z-score``.
        dense_weight: Weight of the dense ranking in the fusion, from 0 to 1.
        rerank: Cross-encoder (name or folder) for re-ranking the best hits.
        rerank_top: Hits to re-rank per query.
        device: Torch device; ``auto`` picks cuda, mps or cpu.

    Returns:
            The index, which must be closed if it is in a database.
    """
    check_counts(rerank_top=rerank_top)
    reject_unused_arguments(
        {"device": device != "auto" and encoder is None and rerank is None}, "without an encoder"
    )
    if rerank == "":
        raise ConfigError("rerank: expected the name or folder of a cross-encoder, got ''")
    index = open_local(path) if database is None else open_database(database, str(path))
    try:
        return SearchIndex(
            index,
            None if encoder is None else _asker(encoder, device=device, shared=rerank is not None),
            hybrid=hybrid,
            dense_weight=dense_weight,
            scorer=None if rerank is None else cross_encoder(rerank, device=resolve_device(device)),
            rerank_top=rerank_top,
            where=path,
        )
    except BaseException:
        if not isinstance(index, LocalIndex):
            index.close()
        raise
