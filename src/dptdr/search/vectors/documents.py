"""Passages stored with their vectors: the ids, texts and metadata of a shard."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int64

from dptdr.errors import DataError, VectorsError
from dptdr.io.beir import BeirFolder, document_record
from dptdr.io.lines import MAX_ID_BYTES, READ_FAULTS, describe, open_bytes
from dptdr.records import Document, Passage

_EXPONENT = re.compile(r"-?\d+(\.\d+)?[eE][+-]?\d{1,3}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Identity of a corpus."""

    fingerprint: str
    """Identifies the corpus; an unfinished folder can be resumed only with the same one."""
    data: str | None = None
    """Location, for reference."""
    count: int | None = None
    """Number of passages if known, for progress."""


def source_of(data: Path | str) -> Source:
    """Fingerprint the corpus of a BEIR folder and count its passages.

    The fingerprint is the SHA-256 of the uncompressed corpus file; queries and judgements do not
    affect the vectors.

    Raises:
        DataError: If the folder or its corpus does not exist.
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
            raise DataError(f"cannot read the corpus: {error}", path=path) from None
    return Source(fingerprint=digest.hexdigest(), data=str(data), count=lines + (last != b"\n"))


def read_documents(data: Path | str) -> Iterator[Document]:
    """Read the passages of a BEIR folder with their ``metadata`` objects, in file order."""
    return BeirFolder(data).documents()


def pack_documents(
    documents: Sequence[Document],
) -> tuple[bytes, Int64[np.ndarray, " offsets"]]:
    """Serialise documents as JSON lines, with the offset of each line."""
    lines = []
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    for document in documents:
        lines.append(orjson.dumps(document_record(document), option=options))
    offsets = np.zeros(len(lines) + 1, dtype=np.int64)
    np.cumsum([len(line) for line in lines], out=offsets[1:])
    return b"".join(lines), offsets


def unpack_document(line: bytes) -> Document:
    """Parse a line written by :func:`pack_documents`.

    Raises:
        ValueError: If the line is malformed.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {describe(record)}")
    for field in ("_id", "text", "title"):
        if not isinstance(record.get(field), str):
            raise ValueError(
                f"field '{field}': expected a string, got {describe(record.get(field))}"
            )
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"field 'metadata': expected an object, got {describe(metadata)}")
    return Document(Passage(record["_id"], record["text"], record["title"]), metadata)


def pack_ids(ids: Sequence[str]) -> np.ndarray:
    """Pack ids into a fixed-width UTF-8 array, which can be memory-mapped without pickle.

    Raises:
        VectorsError: If an id ends with a NUL character, which NumPy would strip, or is so long
            that it would inflate the fixed-width array.
    """
    for identifier in ids:
        if identifier.endswith("\0"):
            raise VectorsError(f"expected passage ids without a trailing NUL, got {identifier!r}")
    encoded = [identifier.encode("utf-8") for identifier in ids]
    longest = max(encoded, key=len, default=b"")
    if len(longest) > MAX_ID_BYTES:
        raise VectorsError(
            f"expected passage ids of at most {MAX_ID_BYTES:,} bytes, got {len(longest):,} bytes "
            f"starting with {longest[:40]!r}; shorten the id"
        )
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def unpack_ids(packed: np.ndarray) -> list[str]:
    """Unpack ids packed by :func:`pack_ids`."""
    return [identifier.decode("utf-8") for identifier in packed.tolist()]


@dataclass(frozen=True)
class Filter:
    """Matches documents by the value of a metadata field.

    Args:
        values: Accepted values, or one of them; numbers as text.

    Raises:
        VectorsError: If a value is not text.
    """

    field: str
    values: Sequence[Any]

    def __post_init__(self) -> None:
        # Iterating over a text would accept its letters.
        values = (self.values,) if isinstance(self.values, str) else tuple(self.values)
        wrong = [value for value in values if not isinstance(value, str)]
        if wrong:
            raise VectorsError(
                f"filter '{self.field}': expected values as text, such as '2024', got {wrong[0]!r}"
            )
        object.__setattr__(self, "values", values)

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Parse ``field=value`` or ``field=value,value``; a backslash escapes a comma.

        Raises:
            VectorsError: If the ``=`` or the field is missing.
        """
        field, equals, values = text.partition("=")
        if not equals or not field.strip():
            raise VectorsError(f"expected a filter such as lang=en or lang=en,de, got {text!r}")
        each = re.split(r"(?<!\\),", values)
        return cls(field.strip(), tuple(value.strip().replace("\\,", ",") for value in each))

    def keeps(self, metadata: Mapping[str, Any]) -> bool:
        """Check whether metadata matches; a list matches if any of its items does."""
        if self.field not in metadata:
            return False
        value = metadata[self.field]
        held = value if isinstance(value, list) else [value]
        return any(form in self.values for item in held for form in plain_texts(item))


def plain_texts(value: object) -> list[str]:
    """Return the filter values that a metadata value matches; numbers with and without exponent."""
    text = plain_text(value)
    if not isinstance(value, float):
        return [text]
    # Databases do not keep the sign of zero.
    return ["0.0", "-0.0"] if value == 0 else [text, *_without_exponent(text)]


def wanted_numbers(values: Sequence[str]) -> list[str]:
    """Return the notations in which databases store the numbers that match a filter."""
    return [form for text in values for form in (_stored_number(text),) if form]


def _stored_number(text: str) -> str:
    """Return a number without exponent or sign of zero, or nothing for text that is no number."""
    try:
        value = json.loads(text)
        # Any other notation matches nothing elsewhere.
        if type(value) in (int, float) and text in plain_texts(value):
            return "0.0" if value == 0 and type(value) is float else format(Decimal(text), "f")
    except (ValueError, RecursionError):
        pass
    return ""


def wanted_values(values: Sequence[str]) -> list[str]:
    """Return the filter values that are other JSON than strings and numbers, as JSON."""
    return [text for text in values if _is_other(text)]


def _is_other(text: str) -> bool:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    other = value is None or isinstance(value, (bool, list, dict))
    # PostgreSQL cannot store NUL, nor be asked for it.
    return other and plain_text(value) == text and "\\u0000" not in text


def _without_exponent(text: str) -> list[str]:
    return [format(Decimal(text), "f")] if _EXPONENT.fullmatch(text) else []


def plain_text(value: object) -> str:
    """Convert a metadata value to a filter value: strings unchanged, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
