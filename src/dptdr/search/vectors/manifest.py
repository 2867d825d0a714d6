"""Manifests of vector folders, and their checks."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from dptdr.errors import DataError, VectorsError
from dptdr.io.atomic import read_json
from dptdr.io.lines import describe

FORMAT = "dptdr-vectors"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shards"

DType: TypeAlias = Literal["float32", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)


class StoredFile(NamedTuple):
    """A file of a shard with its size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One window of consecutive passages with their vectors, ids and texts."""

    index: int
    """Position of the window, from 0."""
    rows: int
    """Number of passages."""
    vectors: StoredFile
    ids: StoredFile
    documents: StoredFile
    offsets: StoredFile

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the shard."""
        return (self.vectors, self.ids, self.documents, self.offsets)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of the vectors: only the same may search or continue them."""

    dim: int
    """Dimension of the vectors."""
    dtype: DType
    encoder: str
    """Name of the task or backbone."""
    backbone_fingerprint: str
    passage_fingerprint: str
    data_fingerprint: str
    """SHA-256 of the corpus, or what the caller gave."""
    data: str | None = None
    """Where the corpus stood, for reference."""
    shard_size: int
    """Passages in every shard but the last."""
    weights: str = "float32"
    """Number type of the encoder's weights."""
    probe: tuple[float, ...] = ()
    """Probe of the backbone, see :mod:`dptdr.io.probe`; empty in earlier versions."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Origin":
        """Return what :meth:`as_json` gave, as databases keep it."""
        return cls(**{**values, "probe": tuple(values.get("probe", ()))})

    def as_json(self) -> dict[str, Any]:
        """Return JSON values; those of float32 weights are as earlier versions wrote them."""
        values = asdict(self) | {"probe": list(self.probe)}
        if self.weights == "float32":
            del values["weights"]
        if not self.probe:
            del values["probe"]
        return values


@dataclass(frozen=True, kw_only=True)
class VectorManifest:
    """The contents of ``manifest.json`` of a finished vector folder."""

    origin: Origin
    count: int
    shards: tuple[Shard, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": True,
            "count": self.count,
            **self.origin.as_json(),
            "shards": [shard_as_json(shard) for shard in self.shards],
        }

    @property
    def shards_sha256(self) -> str:
        """SHA-256 of the shards' records, which hold the checksums of all files."""
        records = json.dumps([shard_as_json(shard) for shard in self.shards])
        return hashlib.sha256(records.encode()).hexdigest()


def shard_as_json(shard: Shard) -> dict[str, Any]:
    """Return a shard as JSON values."""
    files = {name: getattr(shard, name)._asdict() for name in _FILE_FIELDS}
    return {"index": shard.index, "rows": shard.rows, **files}


_FILE_FIELDS = {
    "vectors": ".npy",
    "ids": ".ids.npy",
    "documents": ".jsonl",
    "offsets": ".offsets.npy",
}
"""Files of a shard, and how their names end."""


def shard_from_json(record: Any, *, path: Path) -> Shard:
    """Return the shard that a record describes.

    Raises:
        VectorsError: If a field is missing or of another type.
    """
    if not isinstance(record, dict):
        raise VectorsError(f"{path}: expected a shard as an object, got {describe(record)}")
    index = whole_number(record, "index", path=path)
    files = {name: _stored_file(record, name, index=index, path=path) for name in _FILE_FIELDS}
    return Shard(index=index, rows=whole_number(record, "rows", path=path, least=1), **files)


def _stored_file(record: Mapping[str, Any], field: str, *, index: int, path: Path) -> StoredFile:
    found = record.get(field)
    if not isinstance(found, dict):
        raise VectorsError(f"{path}, field '{field}': expected an object, got {describe(found)}")
    name = f"{index:05d}{_FILE_FIELDS[field]}"
    # No other name: a manifest must not lead to files outside its folder.
    if found.get("name") != name:
        raise VectorsError(
            f"{path}, field '{field}': expected the file {name}, got {describe(found.get('name'))}"
        )
    return StoredFile(name, whole_number(found, "bytes", path=path), text(found, "sha256", path))


def whole_number(record: Mapping[str, Any], field: str, *, path: Path, least: int = 0) -> int:
    """Return a number of a manifest.

    Raises:
        VectorsError: If it is missing, no whole number, or out of bounds.
    """
    value = record.get(field)
    if type(value) is not int or not least <= value < 2**48:
        raise VectorsError(
            f"{path}, field '{field}': expected a number of at least {least}, got "
            f"{str(describe(value))[:60]}; make it again"
        )
    return value


def text(record: Mapping[str, Any], field: str, path: Path) -> str:
    """Return a text of a manifest."""
    value = record.get(field)
    if not isinstance(value, str):
        raise VectorsError(
            f"{path}, field '{field}': expected a text, got {describe(value)}; make it again"
        )
    return value


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link inside a folder.

    Raises:
        VectorsError: If the path is one.
    """
    if path.is_symlink():
        raise VectorsError(f"{path}: expected a file or folder of its own, got a symbolic link")


def origin_from_json(record: Mapping[str, Any], *, path: Path) -> Origin:
    """Return the origin of the vectors in a manifest or plan.

    Raises:
        VectorsError: If format, version or a field is not as expected.
    """
    check_format(record, path=path, expected=FORMAT, version=FORMAT_VERSION)
    dtype = record.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise VectorsError(
            f"{path}, field 'dtype': expected {' or '.join(DTYPES)}, got {describe(dtype)}"
        )
    data = record.get("data")
    return Origin(
        dim=whole_number(record, "dim", path=path, least=1),
        dtype=record["dtype"],
        encoder=text(record, "encoder", path),
        backbone_fingerprint=text(record, "backbone_fingerprint", path),
        passage_fingerprint=text(record, "passage_fingerprint", path),
        data_fingerprint=text(record, "data_fingerprint", path),
        data=None if data is None else text(record, "data", path),
        shard_size=whole_number(record, "shard_size", path=path, least=1),
        weights=text(record, "weights", path) if "weights" in record else "float32",
        probe=_numbers(record.get("probe", []), path=path),
    )


def _numbers(value: object, *, path: Path) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(isinstance(each, int | float) for each in value):
        raise VectorsError(f"{path}, field 'probe': expected numbers, got {describe(value)}")
    return tuple(map(float, value))


def read_manifest(folder: Path) -> VectorManifest:
    """Return the manifest of a finished vector folder.

    Raises:
        VectorsError: If it is missing, broken, or of an unknown format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial")
        hint = (
            f"encoding is not finished ({partial} is there): run the same `dptdr encode` again"
            if partial.exists()
            else "make it with `dptdr encode`"
        )
        raise VectorsError(f"{folder}: expected a vector folder with {MANIFEST}; {hint}")
    record = read_record(path)
    origin = origin_from_json(record, path=path)
    listed = record.get("shards")
    if not isinstance(listed, list):
        raise VectorsError(f"{path}, field 'shards': expected a list, got {describe(listed)}")
    shards = tuple(shard_from_json(item, path=path) for item in listed)
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise VectorsError(f"{path}, field 'shards': expected every shard once, in order")
    count = sum(shard.rows for shard in shards)
    if count != record.get("count"):
        raise VectorsError(
            f"{path}, field 'count': expected the sum over the shards, {count}, "
            f"got {describe(record.get('count'))}; encode again"
        )
    return VectorManifest(origin=origin, count=count, shards=shards)


def read_record(path: Path) -> dict[str, Any]:
    """Return a JSON object of a vector or index folder.

    Raises:
        VectorsError: If the file is missing or holds no JSON object.
    """
    refuse_link(path)
    try:
        record = read_json(path)
    except DataError as error:
        raise VectorsError(str(error)) from None
    if not isinstance(record, dict):
        raise VectorsError(f"{path}: expected a JSON object")
    return record


def check_format(record: Mapping[str, Any], *, path: Path, expected: str, version: int) -> None:
    """Refuse a manifest of another format or a newer version.

    Args:
        expected: Name of the format.

    Raises:
        VectorsError: If format or version differ.
    """
    if record.get("format") != expected:
        raise VectorsError(
            f"{path}, field 'format': expected '{expected}', got {describe(record.get('format'))}"
        )
    found = record.get("format_version")
    if type(found) is not int or not 1 <= found <= version:
        raise VectorsError(
            f"{path}, field 'format_version': this dptdr reads versions up to {version}, got "
            f"{describe(found)}; use the dptdr that wrote it, or make it again"
        )
