"""Read, write and validate the manifests of vector folders."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from dptdr.errors import DataError, VectorsError
from dptdr.io.atomic import read_json
from dptdr.io.lines import MAX_COUNT, describe
from dptdr.io.probe import is_probe

FORMAT = "dptdr-vectors"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shards"

DType: TypeAlias = Literal["float32", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)


class StoredFile(NamedTuple):
    """A shard's file, with its size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of consecutive passages with their vectors, ids and texts."""

    index: int
    """Index of the shard, from 0."""
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
    """Origin of the vectors; it must match to search or extend them."""

    dim: int
    """Dimension of the vectors."""
    dtype: DType
    encoder: str
    """Name of the task or backbone."""
    backbone_fingerprint: str
    passage_fingerprint: str
    data_fingerprint: str
    """SHA-256 of the corpus, or a fingerprint supplied by the caller."""
    data: str | None = None
    """Location of the corpus, for reference."""
    shard_size: int
    """Passages per shard, except the last."""
    weights: str = "float32"
    """Dtype of the encoder's weights."""
    probe: tuple[float, ...] = ()
    """Probe of the backbone (see :mod:`dptdr.io.probe`); empty in earlier versions."""

    @classmethod
    def from_json(cls, values: object, *, where: str) -> "Origin":
        """Restore the result of :meth:`as_json`, as stored in databases.

        Args:
            where: Database and index, for messages.

        Raises:
            VectorsError: If fields are missing, unknown or of another kind.
        """
        if not isinstance(values, dict):
            raise VectorsError(
                f"{where}: expected the origin of the vectors as an object, got "
                f"{describe(values)}; load the vectors again"
            )
        if unknown := sorted(values.keys() - cls.__dataclass_fields__.keys()):
            raise VectorsError(
                f"{where}, field '{unknown[0]}': not known to this version of dptdr; upgrade it, "
                "or load the vectors again"
            )
        return _origin_of(values, path=Path(where))

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON values; float32 weights use the format of earlier versions."""
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
        """Convert to the contents of the file."""
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
        """SHA-256 of the shard records, which include the checksums of all files."""
        records = json.dumps([shard_as_json(shard) for shard in self.shards])
        return hashlib.sha256(records.encode()).hexdigest()


def shard_as_json(shard: Shard) -> dict[str, Any]:
    """Convert a shard to JSON values."""
    files = {name: getattr(shard, name)._asdict() for name in _FILE_FIELDS}
    return {"index": shard.index, "rows": shard.rows, **files}


_FILE_FIELDS = {
    "vectors": ".npy",
    "ids": ".ids.npy",
    "documents": ".jsonl",
    "offsets": ".offsets.npy",
}
"""Files of a shard and their suffixes."""


def shard_from_json(record: Any, *, path: Path) -> Shard:
    """Parse a shard record.

    Raises:
        VectorsError: If a field is missing or has the wrong type.
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
    # Accept no other name, so that a manifest cannot point outside its folder.
    if found.get("name") != name:
        raise VectorsError(
            f"{path}, field '{field}': expected the file {name}, got {describe(found.get('name'))}"
        )
    return StoredFile(name, whole_number(found, "bytes", path=path), text(found, "sha256", path))


def whole_number(record: Mapping[str, Any], field: str, *, path: Path, least: int = 0) -> int:
    """Read an integer field of a manifest.

    Raises:
        VectorsError: If it is missing, not an integer, or out of bounds.
    """
    value = record.get(field)
    if type(value) is not int or not least <= value < MAX_COUNT:
        raise VectorsError(
            f"{path}, field '{field}': expected an integer of at least {least}, got "
            f"{str(describe(value))[:60]}; recreate it"
        )
    return value


def text(record: Mapping[str, Any], field: str, path: Path) -> str:
    """Read a string field of a manifest."""
    value = record.get(field)
    if not isinstance(value, str):
        raise VectorsError(
            f"{path}, field '{field}': expected a string, got {describe(value)}; recreate it"
        )
    return value


def refuse_link(path: Path) -> None:
    """Reject a symbolic link inside a folder.

    Raises:
        VectorsError: If the path is a symbolic link.
    """
    if path.is_symlink():
        raise VectorsError(f"{path}: expected a regular file or folder, got a symbolic link")


def origin_from_json(record: Mapping[str, Any], *, path: Path) -> Origin:
    """Parse the origin of the vectors from a manifest or plan.

    Raises:
        VectorsError: If the format, version or a field is invalid.
    """
    check_format(record, path=path, expected=FORMAT, version=FORMAT_VERSION)
    return _origin_of(record, path=path)


def _origin_of(record: Mapping[str, Any], *, path: Path) -> Origin:
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
    if not is_probe(value):
        raise VectorsError(f"{path}, field 'probe': expected finite numbers, got {describe(value)}")
    return tuple(map(float, value))  # type: ignore[call-overload]


def read_manifest(folder: Path) -> VectorManifest:
    """Read the manifest of a complete vector folder.

    Raises:
        VectorsError: If it is missing, damaged, or in an unknown format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial")
        hint = (
            f"encoding is incomplete ({partial} exists): rerun the same `dptdr encode` command"
            if partial.exists()
            else "create one with `dptdr encode`"
        )
        raise VectorsError(f"{folder}: expected a vector folder with {MANIFEST}; {hint}")
    record = read_record(path)
    origin = origin_from_json(record, path=path)
    listed = record.get("shards")
    if not isinstance(listed, list):
        raise VectorsError(f"{path}, field 'shards': expected a list, got {describe(listed)}")
    shards = tuple(shard_from_json(item, path=path) for item in listed)
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise VectorsError(f"{path}, field 'shards': expected every shard exactly once, in order")
    count = sum(shard.rows for shard in shards)
    if count != record.get("count"):
        raise VectorsError(
            f"{path}, field 'count': expected {count}, the total over all shards, "
            f"got {describe(record.get('count'))}; re-encode"
        )
    return VectorManifest(origin=origin, count=count, shards=shards)


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a vector or index folder.

    Raises:
        VectorsError: If the file is missing or does not contain a JSON object.
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
    """Reject a manifest in a different format or a newer version.

    Raises:
        VectorsError: If the format differs or the version is not supported.
    """
    if record.get("format") != expected:
        raise VectorsError(
            f"{path}, field 'format': expected '{expected}', got {describe(record.get('format'))}"
        )
    found = record.get("format_version")
    if type(found) is not int or not 1 <= found <= version:
        raise VectorsError(
            f"{path}, field 'format_version': expected a version up to {version}, got "
            f"{describe(found)}; use the dptdr version that wrote it, or recreate the folder"
        )
