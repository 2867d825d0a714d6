"""Rows of tab-separated files, streamed, with errors that name file and line."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from dptdr.errors import DataError
from dptdr.io.lines import decode_line, id_fault, raw_lines

# The csv module refuses fields beyond 128 KiB unless told otherwise.
_LARGEST_FIELD = 1 << 24


def tab_rows(path: Path, *, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of a plain tab-separated file: no quoting, no header.

    Raises:
        DataError: If the file is missing, or a row has too few or too many fields.
    """
    for number, line in raw_lines(path):
        fields = decode_line(line, path=path, number=number).split("\t")
        check_width(fields, columns=columns, path=path, number=number)
        yield number, fields


def quoted_rows(path: Path, *, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    r"""Yield line number and fields of a tab-separated file with ``"`` around some fields.

    Raises:
        DataError: If the file is missing, a quotation is not closed in its line, or a row has too
            few or too many fields.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    for number, line in raw_lines(path):
        text = decode_line(line, path=path, number=number)
        if '"' not in text:
            fields = text.split("\t")
        else:
            try:
                # A lone \r inside a field would end the row for the csv module.
                (fields,) = csv.reader([text.replace("\r", " ")], delimiter="\t", strict=True)
            except (csv.Error, ValueError) as error:
                raise DataError(
                    f"expected fields in quotation marks to be closed in their line: {error}",
                    path=path,
                    line=number,
                ) from None
        check_width(fields, columns=columns, path=path, number=number)
        yield number, fields


def check_width(fields: Sequence[str], *, columns: Sequence[str], path: Path, number: int) -> None:
    """Check the number of fields of a row.

    Raises:
        DataError: If there are too few or too many.
    """
    if len(fields) != len(columns):
        names = ", ".join(columns)
        raise DataError(
            f"expected {len(columns)} fields separated by tabs ({names}), got {len(fields)}; "
            "was the file cut short?",
            path=path,
            line=number,
        )


def checked_id(text: str, *, path: Path, number: int, field: str) -> str:
    """Return a field that must be an id.

    Raises:
        DataError: If it is empty.
    """
    fault = id_fault(text)
    if fault:
        raise DataError(fault, path=path, line=number, field=field)
    return text
