"""Passages beside their vectors: texts, ids and metadata of one shard, found by row."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from jaxtyping import Int64

from dptdr.errors import DataError, VectorsError
from dptdr.io.beir import BeirFolder, document_record
from dptdr.io.lines import READ_FAULTS, describe, open_bytes
from dptdr.records import Document, Passage

MAX_ID_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Source:
    """Identity of a corpus."""

    fingerprint: str
    """Identifies the corpus: another one may not continue an unfinished folder."""
    data: str | None = None
    """Where it is, for reference."""
    count: int | None = None
    """Passages in it where known, for progress."""


def source_of(data: Path | str) -> Source:
    """Return fingerprint and size of a BEIR folder's corpus.

    Args:
        data: The folder that holds ``corpus.jsonl``.

    Returns:
        SHA-256 of the unpacked corpus file (queries and judgements do not matter to its vectors),
        its folder and its number of lines.

    Raises:
        DataError: If there is no such folder or no corpus in it.
    """
    path = BeirFolder(data).corpus_path
    digest = hashlib.sha256()
    lines = 0
    last = b"\n"
    with open_bytes(path) as handle:
        try:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        except READ_FAULTS as error:
            raise DataError(f"cannot be read: {error}", path=path) from None
    return Source(fingerprint=digest.hexdigest(), data=str(data), count=lines + (last != b"\n"))


def read_documents(data: Path | str) -> Iterator[Document]:
    """Return the passages of a BEIR folder with their ``metadata`` object, in file order.

    Args:
        data: The folder that holds ``corpus.jsonl``.
    """
    return BeirFolder(data).documents()


def pack_documents(
    documents: Sequence[Document],
) -> tuple[bytes, Int64[np.ndarray, " offsets"]]:
    """Return documents as JSON lines, and the offset of each line."""
    lines = []
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    for document in documents:
        lines.append(orjson.dumps(document_record(document), option=options))
    offsets = np.zeros(len(lines) + 1, dtype=np.int64)
    np.cumsum([len(line) for line in lines], out=offsets[1:])
    return b"".join(lines), offsets


def unpack_document(line: bytes) -> Document:
    """Return the document that :func:`pack_documents` wrote as one line.

    Raises:
        ValueError: If it is no such line.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {describe(record)}")
    for field in ("_id", "text", "title"):
        if not isinstance(record.get(field), str):
            raise ValueError(f"field '{field}': expected a text, got {describe(record.get(field))}")
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"field 'metadata': expected an object, got {describe(metadata)}")
    return Document(Passage(record["_id"], record["text"], record["title"]), metadata)


def pack_ids(ids: Sequence[str]) -> np.ndarray:
    """Return ids as an array of fixed-width UTF-8, which can be memory-mapped without pickle.

    Raises:
        VectorsError: If an id ends with a NUL character, which such an array cannot keep, or is so
            long that the array would be many times larger than the texts.
    """
    for identifier in ids:
        if identifier.endswith("\0"):
            raise VectorsError(f"expected ids without a NUL at the end, got {identifier!r}")
    encoded = [identifier.encode("utf-8") for identifier in ids]
    longest = max(encoded, key=len, default=b"")
    if len(longest) > MAX_ID_BYTES:
        raise VectorsError(
            f"expected passage ids of at most {MAX_ID_BYTES:,} bytes, got one of "
            f"{len(longest):,} that begins with {longest[:40]!r}; give the passage a shorter id"
        )
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def unpack_ids(packed: np.ndarray) -> list[str]:
    """Return the ids that :func:`pack_ids` packed."""
    return [identifier.decode("utf-8") for identifier in packed.tolist()]


class Filter(NamedTuple):
    """Keeps documents whose metadata field has one of the given values."""

    field: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Return the filter that ``field=value`` or ``field=value,value`` describes.

        Raises:
            VectorsError: If there is no ``=`` or no field.
        """
        field, equals, values = text.partition("=")
        if not equals or not field.strip():
            raise VectorsError(f"expected a filter such as lang=en or lang=en,de, got {text!r}")
        return cls(field.strip(), tuple(value.strip() for value in values.split(",")))

    def keeps(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether a document with this metadata passes; lists pass by any member."""
        if self.field not in metadata:
            return False
        value = metadata[self.field]
        held = value if isinstance(value, list) else [value]
        return any(plain_text(item) in self.values for item in held)


def plain_text(value: object) -> str:
    """Return a metadata value as filters spell it: text unchanged, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
