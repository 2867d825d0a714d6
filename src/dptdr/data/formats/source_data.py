"""The results of readers: streams of records and their counts."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptdr.errors import DataError
from dptdr.records import Document, Judgement, Passage, Qrels, Query

PUBLISHED: dict[str, int] = {
    "collection.tsv": 8_841_823,
    "queries.train.tsv": 808_731,
    "queries.dev.tsv": 101_093,
    "queries.dev.small.tsv": 6_980,
    "qrels.train.tsv": 532_761,
    "qrels.dev.tsv": 59_273,
    "qrels.dev.small.tsv": 7_437,
    "top1000.dev": 6_668_967,
    "triples.train.small.tsv": 39_780_811,
    "qidpidtriples.train.full.tsv": 269_919_004,
    "qidpidtriples.train.full.2.tsv": 397_768_673,
    "psgs_w100.tsv": 21_015_324,
    "biencoder-nq-train.json": 58_880,
    "biencoder-nq-dev.json": 6_515,
    "nq-test.qa.csv": 3_610,
}
"""Published record counts of MS MARCO and DPR files, by file name."""


@dataclass(kw_only=True)
class SourceData:
    """Streamed records of a source.

    ``counted`` is updated with the records per file as the streams are read; ``expected`` contains
    published counts, if any. ``also`` writes files beyond the BEIR layout and fills ``negatives``.
    ``complete`` means that every judged passage is in the corpus.
    """

    passages: Iterable[Passage | Document]
    queries: Iterable[Query]
    qrels: Mapping[str, Qrels | Iterable[Judgement]]
    read_as: str = ""
    complete: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    negatives: dict[str, int] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    expected: dict[str, int] = field(default_factory=dict)
    also: Callable[[Path], None] | None = None
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


class UniqueTexts:
    """Ids and their texts, as hashes of 64 bits, to find an id with two texts."""

    def __init__(self) -> None:
        self._ids = UniqueIds()
        self._texts: set[int] = set()

    def add(self, record_id: str, text: str, *, path: Path, line: int, what: str) -> bool:
        """Add an id and its text; return whether the id is new.

        Args:
            what: What the id names, for the message.

        Raises:
            DataError: If the id was added with another text.
        """
        size = len(self._texts)
        self._texts.add(_content_key(record_id, text))
        new = self._ids.add(record_id)
        if not new and len(self._texts) > size:
            raise DataError(f"{what} '{record_id}' has another text before", path=path, line=line)
        return new

    def contradicts(self, record_id: str, *texts: str) -> bool:
        """Check whether the id was added, but with none of these texts."""
        return record_id in self._ids and not any(
            _content_key(record_id, text) in self._texts for text in texts
        )


def _content_key(record_id: str, text: str) -> int:
    content = f"{record_id}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


class UniqueIds:
    """A set of ids; numeric ids take one bit each, so 21 million fit in 3 MB."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._others: set[str] = set()

    def add(self, record_id: str) -> bool:
        """Add an id; return whether it is new."""
        number = _small_number(record_id)
        if number is None:
            new = record_id not in self._others
            self._others.add(record_id)
            return new
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            # Grow by an eighth at a time, for amortised constant cost.
            self._bits.extend(bytes(byte + 1 - len(self._bits) + (byte >> 3)))
        new = not self._bits[byte] & bit
        self._bits[byte] |= bit
        return new

    def __contains__(self, record_id: object) -> bool:
        """Check whether an id was added."""
        if not isinstance(record_id, str):
            return False
        number = _small_number(record_id)
        if number is None:
            return record_id in self._others
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))


def _small_number(text: str) -> int | None:
    """Parse a canonical decimal number below 2**30; None if it is not one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    if text[0] == "0" and text != "0":
        return None
    number = int(text)
    return number if number < 1 << 30 else None


def plain_name(path: Path) -> str:
    """Return a file's name without ``.gz``."""
    return path.name.removesuffix(".gz")


def find_file(folder: Path, *names: str) -> Path | None:
    """Return the first file in a folder with one of the names, compressed or not."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def need_folder(path: Path, *, holds: str) -> None:
    """Check that a source is a folder.

    Raises:
        DataError: If it is not a folder.
    """
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing"
        raise DataError(f"expected a folder with {holds}, got {what}", path=path)
