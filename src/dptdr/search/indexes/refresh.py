"""Refresh vectors and index after passages or the prompt have changed."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dptdr.errors import VectorsError
from dptdr.io.probe import same_probe
from dptdr.io.resume import claim
from dptdr.search.indexes.building import BuildSettings, build_index, check_settings
from dptdr.search.indexes.local import FORMAT, LocalIndex, open_index
from dptdr.search.indexes.types import find_type
from dptdr.search.retrieve import TextEncoder, probe_of, weights_of
from dptdr.search.vectors.documents import read_documents, source_of
from dptdr.search.vectors.encoding import (
    EncodeSettings,
    encode_folder,
    partial_path,
    refuse_unrelated,
)
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import MANIFEST, Origin, origin_from_json, read_record
from dptdr.search.vectors.shards import PLAN


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """Result of a refresh."""

    index: LocalIndex
    encoded: int
    """Passages that were encoded."""
    kept: int
    """Passages whose vectors were reused."""
    rebuilt: bool
    """Whether the index was rebuilt."""
    warning: str | None = None
    """Advice if recall is too low."""


def refresh_index(
    encoder: TextEncoder,
    *,
    data: Path,
    vectors: Path,
    index: Path,
    index_type: str | None = None,
    settings: BuildSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Refreshed:
    """Encode changed passages, rebuild the index and replace the old folders.

    Vectors of unchanged passages are reused, unless the passage fingerprint (the prompt, say) has
    changed. Each complete folder replaces its predecessor by a rename: first the vectors, then the
    index, which keeps its old vectors until then. An index that is already open keeps reading the
    old files. Call again to resume after a failure or a kill.

    Args:
        index_type: Type of the new index; by default the current type.

    Raises:
        VectorsError: If vectors or index are broken, or the disk is full; both are left as they
            were.
    """
    old_folder = VectorFolder(vectors)
    old_index = open_index(index)
    before = old_folder.manifest.origin
    _refuse_other_task(old_index, before, encoder, vectors=vectors, index=index)
    source = source_of(data)
    wanted = index_type or old_index.index_type
    settings = _as_before(settings or BuildSettings(), old_index, wanted=wanted)
    if wanted != "auto":
        # Fail before spending hours on encoding.
        count = source.count or old_folder.count
        check_settings(settings, find_type(wanted), count=count, dim=old_folder.dim)
    with claim(index, mark=MANIFEST, format=FORMAT) as output:
        output.refuse_loss()
    counting = _CountingEncoder(encoder)
    folder: VectorFolder | None = old_folder
    unchanged = (before.passage_fingerprint, before.data_fingerprint, before.weights) == (
        encoder.passage_fingerprint,
        source.fingerprint,
        weights_of(encoder),
    )
    if not unchanged or not same_probe(before.probe, probe_of(encoder)):
        _drop_other_work(vectors, encoder, data_fingerprint=source.fingerprint)
        folder = encode_folder(
            counting,
            read_documents(data),
            out=vectors,
            source=source,
            settings=EncodeSettings(shard_size=before.shard_size, dtype=before.dtype),
            reuse=old_folder,
            on_progress=on_progress,
        )
    if folder is None:
        raise VectorsError(f"{vectors}: encoding is incomplete; rerun the same command")
    rebuilt = (
        folder.manifest != old_index.vectors.manifest
        or wanted != old_index.index_type
        or settings.options != old_index.options
        or settings.reduction != old_index.reduction
        or (settings.bm25, settings.language) != (old_index.has_lexical, old_index.language)
        or settings.seed is not None
    )
    warning = None
    if rebuilt:
        seed = read_record(index / MANIFEST).get("seed")
        if settings.seed is None and wanted == old_index.index_type and type(seed) is int:
            settings = replace(settings, seed=seed)
        old_index, choice = build_index(
            folder, out=index, index_type=wanted, settings=settings, overwrite=True
        )
        warning = choice.warning
    return Refreshed(
        index=old_index,
        encoded=counting.encoded,
        kept=folder.count - counting.encoded,
        rebuilt=rebuilt,
        warning=warning,
    )


def _refuse_other_task(
    old: LocalIndex, before: Origin, encoder: TextEncoder, *, vectors: Path, index: Path
) -> None:
    """Reject an index of unrelated vectors, which the refresh would replace."""
    indexed = old.vectors.manifest.origin
    if indexed.passage_fingerprint == before.passage_fingerprint:
        return
    # A refresh interrupted between the two renames leaves new vectors with the old index.
    half_done = before.passage_fingerprint == encoder.passage_fingerprint
    if not half_done or indexed.encoder != before.encoder:
        raise VectorsError(
            f"{index}: expected the index of {vectors} (made by '{before.encoder}'), got one of "
            f"'{indexed.encoder}'; specify the index of these vectors, or build a new one"
        )


def _as_before(settings: BuildSettings, old: LocalIndex, *, wanted: str) -> BuildSettings:
    """Fill in missing settings from the old index."""
    settings = replace(
        settings,
        bm25=settings.bm25 or old.has_lexical,
        language=settings.language or old.language,
        dimensions=settings.dimensions or old.reduction.dimensions,
    )
    if wanted != old.index_type:
        return settings
    return replace(
        settings,
        options={**old.options, **settings.options},
        quantize=settings.quantize or old.reduction.quantize,
    )


def _drop_other_work(vectors: Path, encoder: TextEncoder, *, data_fingerprint: str) -> None:
    """Delete the output of an interrupted refresh, unless this one can resume it."""
    work = partial_path(vectors)
    if not work.is_dir():
        return
    try:
        begun = origin_from_json(read_record(work / PLAN), path=work / PLAN)
    except VectorsError:
        same = False
    else:
        same = (begun.passage_fingerprint, begun.data_fingerprint, begun.weights) == (
            encoder.passage_fingerprint,
            data_fingerprint,
            weights_of(encoder),
        ) and same_probe(begun.probe, probe_of(encoder))
    if not same:
        refuse_unrelated(work)
        shutil.rmtree(work)


class _CountingEncoder:
    """An encoder wrapper that counts encoded passages."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.inner = encoder
        self.encoded = 0
        self.name = encoder.name
        self.dim = encoder.dim
        self.backbone_fingerprint = encoder.backbone_fingerprint
        self.query_fingerprint = encoder.query_fingerprint
        self.passage_fingerprint = encoder.passage_fingerprint
        self.weights_dtype = weights_of(encoder)
        self.backbone_probe = probe_of(encoder)

    def encode_queries(
        self, texts: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode with the wrapped encoder."""
        return self.inner.encode_queries(texts, on_progress=on_progress)

    def encode_passages(
        self, texts: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode with the wrapped encoder and count the passages."""
        self.encoded += len(texts)
        return self.inner.encode_passages(texts, on_progress=on_progress)
