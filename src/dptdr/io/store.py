"""Look up passages and queries by id, reading them from disk on demand."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, duplicate_id, parse_passage, parse_query
from dptdr.io.ids import RowTable
from dptdr.io.offsets import Spans, line_spans
from dptdr.records import Passage, Query

Record = TypeVar("Record", Passage, Query)


class RecordStore(abc.ABC, Generic[Record]):
    """Records of a JSON-lines file by id, with 32 bytes of memory each.

    Every line is read and validated once, when the store is created.

    Raises:
        DataError: If the file is missing, a line is malformed or an id is duplicated.
    """

    noun: ClassVar[str]
    """Name of a record in messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: Spans = line_spans(path)
        self._rows = RowTable.build(self)
        for first, second in self._rows.doubles():
            record_id = self.at(second).id
            if self.at(first).id == record_id:
                lines = (self._spans.line_number(first), self._spans.line_number(second))
                raise duplicate_id(record_id, path=path, lines=lines, noun=self.noun)

    @staticmethod
    @abc.abstractmethod
    def parse_line(line: bytes, *, path: Path, number: int) -> Record:
        """Parse a line."""

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in file order."""
        return (self.at(row).id for row in range(len(self)))

    def __contains__(self, record_id: object) -> bool:
        return isinstance(record_id, str) and self.get(record_id) is not None

    def __getitem__(self, record_id: str) -> Record:
        record = self.get(record_id)
        if record is None:
            raise DataError(f"no {self.noun} with id '{record_id}'", path=self.path)
        return record

    def get(self, record_id: str) -> Record | None:
        """Return the record with an id, or None."""
        records = (self.at(row) for row in self._rows.rows(record_id).tolist())
        return next((record for record in records if record.id == record_id), None)

    def at(self, row: int) -> Record:
        """Return the record in a row: its index in the file, from 0, not counting blank lines."""
        line = self._spans.read(row)
        try:
            return self.parse_line(line, path=self.path, number=row + 1)
        except DataError as error:
            # Blank lines shift the count, so determine the line number only when needed.
            raise DataError(
                error.reason,
                path=error.path,
                line=self._spans.line_number(row),
                field=error.field,
            ) from None


class PassageStore(RecordStore[Passage]):
    """The passages of a data folder by id."""

    noun = "passage"
    parse_line = staticmethod(parse_passage)

    def __init__(self, folder: BeirFolder) -> None:
        super().__init__(folder.corpus_path)


class QueryStore(RecordStore[Query]):
    """The queries of a data folder by id."""

    noun = "query"
    parse_line = staticmethod(parse_query)

    def __init__(self, folder: BeirFolder) -> None:
        super().__init__(folder.queries_path)
