"""What the manifest of a vector folder says, and how it is checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from dptdr.errors import DataError, VectorsError
from dptdr.io.atomic import read_json

FORMAT = "dptdr-vectors"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shards"

DType: TypeAlias = Literal["float32", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)


class StoredFile(NamedTuple):
    """A file of a shard with what proves that it is whole."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One window of consecutive passages with their vectors, ids and texts."""

    index: int
    """Position of the window, from 0."""
    rows: int
    """Passages in it."""
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
    """What made the vectors: they may only be searched or continued by the same."""

    dim: int
    """Numbers in a vector."""
    dtype: DType
    encoder: str
    """Readable name of task or backbone."""
    backbone_fingerprint: str
    passage_fingerprint: str
    data_fingerprint: str
    """SHA-256 of the corpus, or what the caller gave."""
    data: str | None = None
    """Where the corpus stood, for reference."""
    shard_size: int
    """Passages in every shard but the last."""


@dataclass(frozen=True, kw_only=True)
class VectorManifest:
    """All that ``manifest.json`` of a finished vector folder says."""

    origin: Origin
    count: int
    shards: tuple[Shard, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as it stands in the file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": True,
            "count": self.count,
            **asdict(self.origin),
            "shards": [shard_as_json(shard) for shard in self.shards],
        }


def shard_as_json(shard: Shard) -> dict[str, Any]:
    """Return a shard as it stands in its record and in the manifest."""
    files = {name: getattr(shard, name)._asdict() for name in _FILE_FIELDS}
    return {"index": shard.index, "rows": shard.rows, **files}


_FILE_FIELDS = ("vectors", "ids", "documents", "offsets")


def shard_from_json(record: Any, *, path: Path) -> Shard:
    """Return the shard that a record describes.

    Args:
        record: The parsed JSON.
        path: The file it came from, for the message.

    Returns:
        The shard.

    Raises:
        VectorsError: If a field is missing or of another type.
    """
    try:
        files = {
            name: StoredFile(
                str(record[name]["name"]), int(record[name]["bytes"]), str(record[name]["sha256"])
            )
            for name in _FILE_FIELDS
        }
        return Shard(index=int(record["index"]), rows=int(record["rows"]), **files)
    except (KeyError, TypeError, ValueError) as error:
        raise VectorsError(
            f"{path}: expected a shard with index, rows, {', '.join(_FILE_FIELDS)}, "
            f"{_missing(error)}; encode again"
        ) from None


def origin_from_json(record: Mapping[str, Any], *, path: Path) -> Origin:
    """Return what made the vectors, as a manifest or plan says.

    Args:
        record: The parsed JSON.
        path: The file it came from, for the message.

    Returns:
        The origin.

    Raises:
        VectorsError: If format, version or a field is not as expected.
    """
    check_format(record, path=path, expected=FORMAT, version=FORMAT_VERSION)
    if record.get("dtype") not in DTYPES:
        raise VectorsError(
            f"{path}, field 'dtype': expected {' or '.join(DTYPES)}, got {record.get('dtype')!r}"
        )
    try:
        return Origin(**{name: record[name] for name in Origin.__dataclass_fields__})
    except KeyError as error:
        raise VectorsError(f"{path}: {_missing(error)}; encode again") from None


def read_manifest(folder: Path) -> VectorManifest:
    """Return the manifest of a finished vector folder.

    Args:
        folder: The vector folder.

    Returns:
        The manifest.

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
    shards = tuple(shard_from_json(item, path=path) for item in record.get("shards", []))
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise VectorsError(f"{path}, field 'shards': expected every shard once, in order")
    count = sum(shard.rows for shard in shards)
    if count != record.get("count"):
        raise VectorsError(
            f"{path}, field 'count': expected the sum over the shards, {count}, "
            f"got {record.get('count')}; encode again"
        )
    return VectorManifest(origin=origin, count=count, shards=shards)


def read_record(path: Path) -> dict[str, Any]:
    """Return a JSON object of a vector or index folder.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        VectorsError: If the file is missing or holds no JSON object.
    """
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
        record: The parsed JSON.
        path: The file it came from.
        expected: Name of the format.
        version: Newest version that this dptdr reads.

    Raises:
        VectorsError: If format or version differ.
    """
    if record.get("format") != expected:
        raise VectorsError(
            f"{path}, field 'format': expected '{expected}', got {record.get('format')!r}"
        )
    found = record.get("format_version")
    if not isinstance(found, int) or not 1 <= found <= version:
        raise VectorsError(
            f"{path}, field 'format_version': this dptdr reads versions up to {version}, got "
            f"{found!r}; use the dptdr that wrote it, or make it again"
        )


def _missing(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    return f"a field is of the wrong type ({error})"
