"""Training files: queries with positives and negatives, with random access on disk.

The first record determines the format:

===================  ==============================================================================
``groups``           JSON lines of ``query``, ``positives``, ``negatives``; each item is a text, a
                     passage id in the data folder, an object with ``text`` or ``id`` and
                     ``score``, or a list of token ids (as in the authors' files, for queries too)
``mined``            JSON lines of ``query_id`` and ids, as written by ``dptdr mine``
``tevatron``         JSON lines of ``query``, ``positive_passages``, ``negative_passages``
``tevatron-ids``     JSON lines of ``query_text``, ``positive_document_ids``,
                     ``negative_document_ids``
``dpr``              one JSON array (or lines) of ``question``, ``positive_ctxs``,
                     ``hard_negative_ctxs``
===================  ==============================================================================
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dptdr.data.tokens import TokenTexts
from dptdr.data.training_records import Format, Lookup, Place, group_of_record, recognise
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.io.intarray import as_numbers, int_array
from dptdr.io.jsonarray import array_elements, is_json_array
from dptdr.io.lines import describe, parse_object, raw_lines
from dptdr.io.offsets import Spans, line_spans
from dptdr.records import TrainingGroup


class GroupFile:
    """A training file with random access; ``file[i]`` is its i-th group.

    Uses 16 bytes of memory per group, and 32 per passage and query of the folder if the file refers
    to them by id.

    Args:
        folder: The data folder that ids refer to; required only for files with ids.
        tokens: Decodes token ids; required only for files with token ids.

    Raises:
        DataError: If the file is missing, empty or in an unknown format, or contains ids and no
            folder is given.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        folder: BeirFolder | None = None,
        tokens: TokenTexts | None = None,
    ) -> None:
        self.path = Path(path)
        self._spans = _array_spans(self.path) if is_json_array(self.path) else line_spans(self.path)
        if not len(self._spans):
            raise DataError("the file contains no training groups", path=self.path)
        first = self._record(0)
        self.format: Format = recognise(first, place=self._place(0))
        self._lookup = Lookup(folder, tokens=tokens)
        self._lookup.decide(first, format=self.format)
        self.rows: Sequence[int] | Int64[np.ndarray, " groups"] = range(len(self._spans))
        """Index in the file of each group."""
        self.own: Mapping[str, str] = {}
        """Own passages of queries that are also in the corpus."""
        # Fail now rather than during training if the file needs a folder.
        group_of_record(first, format=self.format, lookup=self._lookup, place=self._place(0))

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.rows)

    def __getitem__(self, item: int) -> TrainingGroup:
        """Return a group, or raise a DataError if it is malformed."""
        if not 0 <= item < len(self):
            raise IndexError(f"expected a row from 0 to {len(self) - 1}, got {item}")
        row = int(self.rows[item])
        group = group_of_record(
            self._record(row), format=self.format, lookup=self._lookup, place=self._place(row)
        )
        return group._replace(own_passage=self.own.get(group.query_id, ""))

    def __iter__(self) -> Iterator[TrainingGroup]:
        """Yield all groups in file order."""
        return (self[item] for item in range(len(self)))

    def _place(self, row: int) -> Place:
        return Place(path=self.path, row=row, line=lambda: self._spans.line_number(row))

    def _record(self, row: int) -> dict[str, Any]:
        piece = self._spans.read(row)
        try:
            return parse_object(piece, path=self.path, number=row + 1)
        except DataError as error:
            raise DataError(
                error.reason, path=self.path, line=self._spans.line_number(row)
            ) from None


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, or of a single JSON array.

    Raises:
        DataError: If the file is missing or malformed.
    """
    if not is_json_array(path):
        for number, line in raw_lines(path):
            yield number, parse_object(line, path=path, number=number)
        return
    for element in array_elements(path):
        yield element.line, _as_object(element.value, path=path, line=element.line)


def _as_object(value: object, *, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"expected an array of objects, got {describe(value)}", path=path, line=line
        )
    return value


def _array_spans(path: Path) -> Spans:
    starts, ends = int_array(), int_array()
    for element in array_elements(path):
        starts.append(element.start)
        ends.append(element.end)
    return Spans(path, starts=as_numbers(starts), ends=as_numbers(ends))
