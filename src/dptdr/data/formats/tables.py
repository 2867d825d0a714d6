"""Stream rows of tab-separated files, with errors that name file and line."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from dptdr.errors import DataError
from dptdr.io.lines import decode_line, id_fault, raw_lines

# By default, the csv module rejects fields larger than 128 KiB.
_LARGEST_FIELD = 1 << 24


def tab_rows(path: Path, *, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of a plain tab-separated file (no quoting, no header).

    Raises:
        DataError: If the file is missing, or a row has too few or too many fields.
    """
    for number, line in raw_lines(path):
        fields = decode_line(line, path=path, number=number).split("\t")
        check_width(fields, columns=columns, path=path, number=number)
        yield number, fields


def quoted_rows(path: Path, *, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    r"""Yield line number and fields of a tab-separated file with optional ``"`` quoting.

    Raises:
        DataError: If the file is missing, a quoted field is not closed on its line, or a row has
            too few or too many fields.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    for number, line in raw_lines(path):
        text = decode_line(line, path=path, number=number)
        if '"' not in text:
            fields = text.split("\t")
        else:
            try:
                # The csv module would end the row at a lone \r inside a field.
                (fields,) = csv.reader([text.replace("\r", " ")], delimiter="\t", strict=True)
            except (csv.Error, ValueError) as error:
                raise DataError(
                    f"expected quoted fields to be closed on the same line: {error}",
                    path=path,
                    line=number,
                ) from None
        check_width(fields, columns=columns, path=path, number=number)
        yield number, fields


def check_width(fields: Sequence[str], *, columns: Sequence[str], path: Path, number: int) -> None:
    """Check the number of fields in a row.

    Raises:
        DataError: If there are too few or too many.
    """
    if len(fields) != len(columns):
        names = ", ".join(columns)
        raise DataError(
            f"expected {len(columns)} tab-separated fields ({names}), got {len(fields)}; the file "
            "may be truncated",
            path=path,
            line=number,
        )


def checked_id(text: str, *, path: Path, number: int, field: str) -> str:
    """Return an id field after validating it.

    Raises:
        DataError: If it is not a valid id.
    """
    fault = id_fault(text)
    if fault:
        raise DataError(fault, path=path, line=number, field=field)
    return text
