"""Encode one shard of a corpus and write it atomically."""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dptdr.errors import VectorsError
from dptdr.io.atomic import atomic_file, sha256_file, write_json
from dptdr.io.ids import IdSet
from dptdr.io.probe import same_probe
from dptdr.records import Document
from dptdr.search.retrieve import TextEncoder, probe_of, weights_of
from dptdr.search.vectors.documents import pack_documents, pack_ids
from dptdr.search.vectors.manifest import (
    SHARDS,
    DType,
    Shard,
    StoredFile,
    read_record,
    shard_as_json,
    shard_from_json,
)
from dptdr.search.vectors.reuse import KnownVectors

PLAN = "plan.json"


def refuse_doubles(ids: Iterable[str], *, seen: IdSet) -> None:
    """Add passage ids to ``seen``, rejecting duplicates.

    Raises:
        VectorsError: If an id is a duplicate.
    """
    for identifier in ids:
        if not seen.add(identifier):
            raise VectorsError(
                f"duplicate passage id '{identifier}'; check the data with `dptdr data inspect`"
            )


def record_path(work: Path, index: int) -> Path:
    """Return the path of the record file that marks a shard as finished."""
    return work / SHARDS / f"{index:05d}.json"


def check_record(
    path: Path, documents: Sequence[Document], *, work: Path, encoder: TextEncoder, dtype: DType
) -> None:
    """Reject a finished shard of another encoder or passages, or whose files are damaged.

    Raises:
        VectorsError: If encoder, dtype or passages differ, or a file does not match its checksum.
    """
    record = read_record(path)
    shard = shard_from_json(record, path=path)
    if record.get("encoder") != _made_by(encoder):
        raise VectorsError(
            f"{path}: this shard was encoded with a different prompt, backbone or dtype than "
            f"'{encoder.name}'; delete this file to re-encode the shard"
        )
    # Earlier versions recorded neither dtype nor probe.
    if record.get("dtype", dtype) != dtype:
        raise VectorsError(
            f"{path}: this shard has {record['dtype']} vectors, expected {dtype}; delete this file "
            "to re-encode the shard, or use the dtype of the others"
        )
    if not same_probe(tuple(record.get("probe", ())), probe_of(encoder)):
        raise VectorsError(
            f"{path}: '{encoder.name}' has the weights that made this shard, but encodes "
            "differently; check whether config.json was changed where it was made, or delete this "
            "file to re-encode the shard"
        )
    text, _ = pack_documents(documents)
    if hashlib.sha256(text).hexdigest() != shard.documents.sha256:
        raise VectorsError(
            f"{path}: expected the passages of shard {shard.index}, got different ones; "
            f"use the original data, or delete {work} to start over"
        )
    for stored in shard.files:
        file = path.parent / stored.name
        if not file.is_file() or sha256_file(file) != stored.sha256:
            raise VectorsError(f"{file}: missing or damaged; delete {path} to re-encode this shard")


def encode_shard(
    encoder: TextEncoder,
    documents: Sequence[Document],
    *,
    index: int,
    work: Path,
    dtype: DType,
    known: KnownVectors,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode one shard and write its files, then its record.

    Args:
        index: Index of the shard in the corpus, from 0.

    Raises:
        VectorsError: If a vector contains NaN, has the wrong dimension, or overflows the dtype; or
            the encoder is not the one that began the work.
    """
    # The plan's goes into the record, since processes differ in the last digits.
    plan = work / PLAN
    # A worker that sees another disk is reported later.
    probe = read_record(plan).get("probe", []) if plan.is_file() else []
    if not same_probe(tuple(probe), probe_of(encoder)):
        raise VectorsError(
            f"{work}: '{encoder.name}' has the weights that began these vectors, but encodes "
            "differently here; check whether config.json was changed"
        )
    contents = [document.passage.content for document in documents]
    vectors = known.take(contents)
    missing = np.flatnonzero(np.isnan(vectors[:, 0]))
    if len(missing):
        fresh = encoder.encode_passages(
            [contents[row] for row in missing.tolist()], on_progress=on_progress
        )
        _check_vectors(fresh, [documents[row] for row in missing.tolist()], encoder=encoder)
        vectors[missing] = fresh
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    if not np.isfinite(stored).all():
        row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
        raise VectorsError(
            f"the vector of passage '{documents[row].passage.id}' overflows {dtype}; use float32"
        )
    text, offsets = pack_documents(documents)
    ids = pack_ids([document.passage.id for document in documents])
    name, folder = f"{index:05d}", work / SHARDS
    shard = Shard(
        index=index,
        rows=len(documents),
        vectors=_write(folder / f"{name}.npy", _npy(stored)),
        ids=_write(folder / f"{name}.ids.npy", _npy(ids)),
        documents=_write(folder / f"{name}.jsonl", text),
        offsets=_write(folder / f"{name}.offsets.npy", _npy(offsets)),
    )
    # Must be last: a shard counts as done once its record exists.
    record = shard_as_json(shard) | {"encoder": _made_by(encoder), "dtype": dtype}
    record["probe"] = probe
    write_json(record_path(work, index), record)


def _made_by(encoder: TextEncoder) -> str:
    return f"{encoder.passage_fingerprint} {weights_of(encoder)}"


def _check_vectors(
    vectors: Float32[np.ndarray, "texts dim"],
    documents: Sequence[Document],
    *,
    encoder: TextEncoder,
) -> None:
    if vectors.shape != (len(documents), encoder.dim):
        raise VectorsError(
            f"expected {len(documents)} vectors of dimension {encoder.dim} from "
            f"'{encoder.name}', got an array of shape {vectors.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise VectorsError(
            f"the vector of passage '{documents[int(broken[0])].passage.id}' contains NaN or "
            f"infinity; the prompt or backbone of '{encoder.name}' is broken, retrain it"
        )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> StoredFile:
    with atomic_file(path) as handle:
        handle.write(content)
    return StoredFile(path.name, len(content), hashlib.sha256(content).hexdigest())
