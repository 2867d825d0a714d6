r"""Read rows of tables in any file format, with file and row number.

Supports CSV and TSV (quoted as in spreadsheets, with ``\n`` allowed inside quotes), JSON lines, a
single JSON array, Parquet, and Arrow files saved by ``datasets``. Text formats may be ``.gz``. All
files are streamed.
"""

import csv
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dptdr.data.training_files import read_records
from dptdr.errors import DataError
from dptdr.io.lines import READ_FAULTS, UTF8_MARK, decode_line, describe, open_bytes

# By default, the csv module rejects fields larger than 128 KiB.
_LARGEST_FIELD = 1 << 24
_ROWS_PER_BATCH = 1024


class Row(NamedTuple):
    """A row: its values by column, and its position in the file."""

    values: Mapping[str, Any]
    path: Path | str | None
    number: int
    unit: Literal["line", "row"] = "row"

    def error(self, reason: str, field: str | None = None) -> DataError:
        """Create an error that names this row."""
        return _error(reason, path=self.path, number=self.number, unit=self.unit, field=field)


def is_table(path: Path) -> bool:
    """Check whether a file name has the suffix of a table."""
    return _reader(path) is not None


def table_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table lazily.

    Raises:
        DataError: If the file is missing, empty, malformed or in an unknown format.
    """
    reader = _reader(path)
    if reader is None:
        raise DataError(f"expected a table ({', '.join(SUFFIXES)})", path=path)
    if not path.is_file():
        raise DataError(
            "expected a file, got a folder" if path.exists() else "no such file", path=path
        )
    if not path.stat().st_size:
        raise DataError("the file is empty", path=path)
    any_row = False
    for row in reader(path):
        any_row = True
        yield row
    if not any_row:
        raise DataError("the file contains no rows", path=path)


def object_rows(data: object, *, where: str | None = None) -> Iterator[Row]:
    """Yield the rows of Python objects: dicts, tuples, a ``datasets.Dataset``, a pandas frame.

    A tuple is query, positive, and any number of negatives; a named tuple's fields are columns.

    Args:
        where: What errors name before the row, where there are several such data.

    Raises:
        DataError: If an object is neither a mapping nor a tuple of texts; names the row.
    """
    for count, values in enumerate(_objects(data, where), 1):
        row = Row({}, where, count)
        if isinstance(values, Mapping):
            yield row._replace(values=values)
        elif hasattr(values, "_fields"):
            yield row._replace(values=dict(zip(values._fields, values, strict=True)))
        elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
            if len(values) < 2:
                raise row.error(f"expected a query and a positive, got {len(values)} values")
            number = next((value for value in values if isinstance(value, Number)), None)
            if number is not None:
                raise row.error(
                    f"expected a tuple of strings, got {describe(number)} in it; for scores and "
                    "labels use dicts, such as {'query': ..., 'positive': ..., 'score': ...}"
                )
            names = _tuple_names(len(values))
            yield row._replace(values=dict(zip(names, values, strict=True)))
        else:
            raise row.error(f"expected a dict or a tuple of strings, got {describe(values)}")


def _objects(data: object, where: str | None) -> Iterator[Any]:
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            "expected rows (dicts, tuples, a frame or a Dataset; or a dict from splits to them), "
            f"got {describe(data)}",
            path=where,
        )
    # Iterating over a DataFrame gives its column names.
    if hasattr(data, "itertuples") and hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
        if repeated := _repeated(names):
            raise DataError(f"two columns are named '{repeated}'", path=where)
        for values in data.itertuples(index=False, name=None):
            yield dict(zip(names, values, strict=True))
    else:
        yield from data


def _tuple_names(length: int) -> list[str]:
    return ["query", "positive", *(f"negative_{number}" for number in range(1, length - 1))]


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LARGEST_FIELD)
    lines = text_lines(path)
    first = next(lines, "")
    tabs = path.name.removesuffix(".gz").endswith(".tsv")
    delimiter = "\t" if tabs else max(",;\t", key=first.count)
    reader = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _csv_error(error, path=path, start=start, end=reader.line_num) from None
        if not fields:
            continue
        if not names:
            names = _header(fields, path=path, line=start)
            continue
        if len(fields) != len(names):
            raise DataError(
                f"expected {len(names)} fields ({', '.join(names)}), got {len(fields)}",
                path=path,
                line=start,
            )
        yield Row(dict(zip(names, fields, strict=True)), path, start, "line")


def _csv_error(error: csv.Error, *, path: Path, start: int, end: int) -> DataError:
    # Messages of the csv module describe its state, not the problem in the file.
    what = str(error)
    if "unexpected end of data" in what or "field larger" in what:
        reason = "a quotation mark opened in this row is never closed"
    elif "new-line character" in what:
        return DataError(
            "expected lines that end in \\n, got a lone \\r; save the file with other line ends",
            path=path,
            line=start,
        )
    elif "expected after" in what:
        reason = f"a closing quotation mark is in the middle of a field (line {end})"
    else:
        reason = f"invalid CSV: {what}"
    return DataError(
        f'{reason}; double each quotation mark ("") inside a quoted field',
        path=path,
        line=start,
    )


def _header(fields: Sequence[str], *, path: Path, line: int) -> list[str]:
    names = [field.strip() for field in fields]
    if repeated := _repeated(names):
        raise DataError(f"two columns are named '{repeated}'", path=path, line=line)
    return names


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def text_lines(path: Path) -> Iterator[str]:
    r"""Yield all lines with their endings; blank lines and ``\r`` may be part of a quoted field.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    number = 0
    with open_bytes(path) as handle:
        try:
            for line in handle:
                number += 1
                if number == 1:
                    line = line.removeprefix(UTF8_MARK)
                yield decode_line(line, path=path, number=number)
        except READ_FAULTS as error:
            raise DataError(f"cannot be read: {error}", path=path, line=number + 1) from None


def _json_rows(path: Path) -> Iterator[Row]:
    for number, record in read_records(path):
        yield Row(record, path, number, "line")


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = _pyarrow("pyarrow.parquet", path=path)

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS_PER_BATCH)

    return _batch_rows(batches(), path=path, kind="Parquet")


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Read both Arrow formats: the stream format of ``datasets`` and the file format of Feather."""
    arrow = _pyarrow("pyarrow", path=path)

    def batches() -> Iterator[Any]:
        with arrow.OSFile(str(path)) as handle:
            if handle.read(6) == b"ARROW1":
                file = arrow.ipc.open_file(handle)
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                handle.seek(0)
                yield from arrow.ipc.open_stream(handle)

    return _batch_rows(batches(), path=path, kind="Arrow")


def _batch_rows(batches: Iterator[Any], *, path: Path, kind: str) -> Iterator[Row]:
    arrow = _pyarrow("pyarrow", path=path)
    number = 0
    try:
        for batch in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"expected distinct columns, got '{twice}' twice", path=path)
            for offset in range(0, batch.num_rows, _ROWS_PER_BATCH):
                for values in batch.slice(offset, _ROWS_PER_BATCH).to_pylist():
                    number += 1
                    yield Row(values, path, number)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"invalid {kind} from here on ({what}); the file may be truncated",
            path=path,
            row=number + 1,
        ) from None


def _pyarrow(name: str, *, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(
            "reading this file needs pyarrow; run `pip install 'dptdr[parquet]'`", path=path
        ) from None


def _error(
    reason: str,
    *,
    path: Path | str | None,
    number: int,
    unit: Literal["line", "row"],
    field: str | None,
) -> DataError:
    if unit == "line":
        return DataError(reason, path=path, line=number, field=field)
    return DataError(reason, path=path, row=number, field=field)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
SUFFIXES = tuple(_READERS)
"""Supported table suffixes."""


def _reader(path: Path) -> Callable[[Path], Iterator[Row]] | None:
    return _READERS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
