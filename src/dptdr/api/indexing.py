"""Build, refresh and open an index."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr.api.encoding import encode
from dptdr.api.inputs import AnyData, AnyPath, data_folder, phases, resolve_device
from dptdr.api.task import AnyEncoder, loaded
from dptdr.config.arguments import check_counts, checked
from dptdr.errors import ConfigError
from dptdr.io.resume import try_outputs
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
"""Options of an index in a database; the last two are former names."""


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
    """Build an index over data, or over a vector folder that ``dptdr.encode`` wrote.

    Args:
        data: A vector folder, or data as for ``dptdr.encode``, whose corpus is encoded first.
        encoder: Encodes the passages, and the queries of later searches.
        out: The index folder, or the index's name in ``database``.
        vectors: Where to put the vectors of data; ``OUT.vectors`` by default.
        index_type: ``auto`` (the default) chooses by count and memory; or ``exact``, ``hnsw``,
            ``hnsw-sq``, ``ivf-sq``, ``ivf-pq``, ``rabitq``.
        options: Options of the type, such as ``{"M": 48, "ef_search": 200}``.
        dimensions: Search the first numbers of each vector only, and the best hits again by all.
        quantize: Search exactly over ``float16``, ``int8`` or ``binary`` numbers, and the best
            hits again by full vectors.
        bm25: Index the words as well, for hybrid search.
        language: Language of the words, such as ``german``; told by the texts by default.
        seed: Decides samples, clusters and rotations; for types with lists only.
        threads: Threads, all cores by default; with 1 the same vectors give the same bytes.
        memory_bytes: Memory that ``auto`` may plan with; half of what is free by default.
        database: Load the vectors into this database instead: ``postgresql://USER@HOST/DATABASE``,
            ``http://HOST:6333`` (Qdrant) or ``qdrant:FOLDER``. It takes ``M`` and
            ``ef_construction`` alone; what the name stood for serves until then.
        overwrite: Replace whatever index, and vectors of data, are there.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        progress: Show progress on standard error.

    Returns:
        The index, ready for texts if an encoder was given.
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
        _refuse_idle(index_type=index_type, overwrite=overwrite, settings=settings)
    asker = None if encoder is None else loaded(encoder, device=device, fast=True)
    if isinstance(data, Path | str) and (Path(data) / MANIFEST).is_file():
        folder = Path(data)
    elif asker is None:
        if isinstance(data, Path | str) and not (Path(data) / "corpus.jsonl").is_file():
            # Says what a vector folder is and how to make it.
            VectorFolder(Path(data))
        raise ConfigError("expected an encoder for the texts of a data folder, got none")
    else:
        folder = Path(vectors) if vectors is not None else Path(f"{out}.vectors")
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


def _refuse_idle(*, index_type: str | None, overwrite: bool, settings: BuildSettings) -> None:
    """Refuse options that have no effect on a database."""
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
    idle = [name for name, value in given.items() if value]
    if idle:
        raise ConfigError("; ".join(f"{name}: has no effect with a database" for name in idle))


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
    """Encode what changed in the data (everything, if the prompt changed) and rebuild the index.

    The old vectors and index serve until both are exchanged.

    Args:
        data: The data as they are now.
        encoder: The encoder as it is now.
        vectors: The vector folder to renew.
        out: The index folder to renew.
        **settings: Settings of ``dptdr.build_index``, such as ``bm25``; by default those of the
            old index.
    """
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
        encoder: Encodes the queries.
        database: Address of the PostgreSQL or Qdrant that holds it.
        hybrid: Merge with BM25 by ``rrf``, ``min-max`` or ``z-score``.
        dense_weight: Share of the vectors in a merge, 0 to 1.
        rerank: Cross-encoder (name or folder) that ranks the best hits again.
        rerank_top: Hits that it scores for each query.
        device: Torch device; ``auto`` takes cuda, mps or cpu.

    Returns:
        The index; close it if it is in a database.
    """
    check_counts(rerank_top=rerank_top)
    index = open_local(path) if database is None else open_database(database, str(path))
    try:
        return SearchIndex(
            index,
            None if encoder is None else loaded(encoder, device=device),
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
