"""Passages and queries by id, read from disk when asked for."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import Int64

from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, duplicate_id, parse_passage, parse_query
from dptdr.io.intarray import as_numbers, int_array
from dptdr.io.offsets import Spans, line_spans
from dptdr.records import Passage, Query

Record = TypeVar("Record", Passage, Query)


class RecordStore(abc.ABC, Generic[Record]):
    """Records of a JSON-lines file by id; 32 bytes for each are in memory, the texts are not.

    Every line is read once, and checked, when the store is made.

    Raises:
        DataError: If the file is missing, a line is broken or two have one id; names file, line
            and field.
    """

    noun: ClassVar[str]
    """What a record is called in messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: Spans = line_spans(path)
        hashes = int_array()
        for row in range(len(self._spans)):
            # Python's own hash, 64 bits; equal ones are told apart by reading the id.
            hashes.append(hash(self.at(row).id))
        numbers = as_numbers(hashes)
        self._rows: Int64[np.ndarray, " rows"] = np.argsort(numbers, kind="stable")
        self._hashes: Int64[np.ndarray, " rows"] = numbers[self._rows]
        self._check_unique()

    def _check_unique(self) -> None:
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            first, second = (int(row) for row in self._rows[place : place + 2])
            record_id = self.at(second).id
            if self.at(first).id == record_id:
                lines = (self._spans.line_number(first), self._spans.line_number(second))
                raise duplicate_id(record_id, path=self.path, lines=lines, noun=self.noun)

    @staticmethod
    @abc.abstractmethod
    def parse_line(line: bytes, *, path: Path, number: int) -> Record:
        """Return the record that stands in a line."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self._spans)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in file order."""
        return (self.at(row).id for row in range(len(self)))

    def __contains__(self, record_id: object) -> bool:
        """Return whether there is a record of this id."""
        return isinstance(record_id, str) and self.get(record_id) is not None

    def __getitem__(self, record_id: str) -> Record:
        """Return the record of an id; a DataError if there is none."""
        record = self.get(record_id)
        if record is None:
            raise DataError(f"holds no {self.noun} '{record_id}'", path=self.path)
        return record

    def get(self, record_id: str) -> Record | None:
        """Return the record of an id.

        Returns:
            The record, or None if there is none.
        """
        wanted = hash(record_id)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and int(self._hashes[place]) == wanted:
            record = self.at(int(self._rows[place]))
            if record.id == record_id:
                return record
            place += 1
        return None

    def at(self, row: int) -> Record:
        """Return the record of a row.

        Args:
            row: Place in the file, from 0, blank lines not counted.

        Raises:
            DataError: If the line is broken; names file, line and field.
        """
        line = self._spans.read(row)
        try:
            return self.parse_line(line, path=self.path, number=row + 1)
        except DataError as error:
            # Blank lines shift the count; find the true number only now that it is needed.
            raise DataError(
                error.reason,
                path=error.path,
                line=self._spans.line_number(row),
                field=error.field,
            ) from None


class PassageStore(RecordStore[Passage]):
    """The passages of a data folder by id.

    Raises:
        DataError: If a line of the corpus is broken; names file, line and field.
    """

    noun = "passage"
    parse_line = staticmethod(parse_passage)

    def __init__(self, folder: BeirFolder) -> None:
        super().__init__(folder.corpus_path)


class QueryStore(RecordStore[Query]):
    """The queries of a data folder by id.

    Raises:
        DataError: If there are no queries or a line is broken; names file, line and field.
    """

    noun = "query"
    parse_line = staticmethod(parse_query)

    def __init__(self, folder: BeirFolder) -> None:
        super().__init__(folder.queries_path)
