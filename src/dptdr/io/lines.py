r"""Stream lines of text files, with errors that name file, line and field.

Only ``\n`` ends a line (a preceding ``\r`` is dropped). ``str.splitlines`` and text mode are
avoided because they also break at U+2028, U+0085 and lone ``\r``, which occur in real passages.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from dptdr.errors import DataError
from dptdr.io.jsonkeys import check_keys

LARGEST_INTEGER = 2**31 - 1
MAX_COUNT = 2**48
"""Counts and sizes in manifests are below this."""
UTF8_MARK = b"\xef\xbb\xbf"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}
MAX_ID_BYTES = 1024
_NOT_IN_IDS = re.compile(r"[\t\n\r\0]")
_DECIMAL = re.compile(r"[ \t]*[+-]?[0-9]+[ \t]*")
READ_FAULTS = (EOFError, OSError, zlib.error)
"""Exceptions that reading a file may raise, particularly a damaged archive."""


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for reading bytes, decompressing ``.gz``.

    Raises:
        DataError: If it cannot be opened.
    """
    try:
        if path.suffix == ".gz":
            return io.BufferedReader(gzip.GzipFile(path, mode="rb"))
        return path.open("rb")
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except IsADirectoryError:
        raise DataError("expected a file, got a folder", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from None


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number (from 1) and bytes of each non-blank line, without its line ending.

    Raises:
        DataError: If the file is missing, unreadable, or its gzip data is broken.
    """
    number = 0
    with open_bytes(path) as handle:
        try:
            for line in handle:
                number += 1
                if number == 1:
                    line = line.removeprefix(UTF8_MARK)
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if line.strip():
                    yield number, line
        except READ_FAULTS as error:
            raise DataError(f"cannot be read: {error}", path=path, line=number + 1) from None


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of :func:`raw_lines` decoded as UTF-8.

    Raises:
        DataError: If the file cannot be read or a line is not UTF-8.
    """
    for number, line in raw_lines(path):
        yield number, decode_line(line, path=path, number=number)


def decode_line(line: bytes, *, path: Path, number: int) -> str:
    """Decode a line.

    Raises:
        DataError: If the bytes are not UTF-8.
    """
    packed = next((name for mark, name in _PACKED.items() if line.startswith(mark)), None)
    if number == 1 and packed is not None:
        raise DataError(
            f"expected UTF-8 text, got {packed} data; decompress the file, or name it .gz if it is "
            "gzip",
            path=path,
            line=number,
        )
    # UTF-16 without its mark: every other byte of plain text is 0, which UTF-8 allows.
    if number == 1 and 0 in line[:2]:
        byte_order = "BE" if line[0] == 0 else "LE"
        raise DataError(
            "expected UTF-8 text, the file looks like UTF-16; save it as UTF-8, or convert it "
            f"(`iconv -f UTF-16{byte_order} -t UTF-8`)",
            path=path,
            line=number,
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wide = number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "UTF-16" if wide else "WINDOWS-1252"
        raise DataError(
            f"expected UTF-8 text, got 0x{line[error.start]:02x} at byte {error.start + 1} of the "
            f"line; save the file as UTF-8, or convert it "
            f"(`iconv -f {encoding} -t UTF-8`)",
            path=path,
            line=number,
        ) from None


def parse_object(line: bytes, *, path: Path, number: int) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Raises:
        DataError: If the line is not UTF-8, not JSON, not an object, or has a key twice.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # Invalid UTF-8 is a different problem, so report it as such.
        decode_line(line, path=path, number=number)
        raise DataError(
            f"expected a JSON object in one line, {error.msg} (column {error.colno})",
            path=path,
            line=number,
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"expected a JSON object in one line, got {describe(value)}", path=path, line=number
        )
    try:
        check_keys(line, value)
    except (ValueError, RecursionError) as error:
        raise DataError(str(error), path=path, line=number) from None
    return value


def text_field(record: Mapping[str, Any], name: str, *, path: Path, number: int) -> str:
    """Return a string field.

    Raises:
        DataError: If the field is missing or not a string.
    """
    value = record.get(name)
    if isinstance(value, str):
        return value
    if name not in record:
        has = ", ".join(list(record)[:8]) or "no fields"
        raise DataError(f"missing; the record has {has}", path=path, line=number, field=name)
    hint = f'; write it as "{value}"' if type(value) is int else ""
    raise DataError(
        f"expected a string, got {describe(value)}{hint}", path=path, line=number, field=name
    )


def id_field(record: Mapping[str, Any], name: str, *, path: Path, number: int) -> str:
    """Return an id field: a non-empty string, or an integer.

    Raises:
        DataError: If the field is missing, has the wrong type, or is not a valid id.
    """
    if type(record.get(name)) is int:
        return str(record[name])
    value = text_field(record, name, path=path, number=number)
    fault = id_fault(value)
    if fault:
        raise DataError(fault, path=path, line=number, field=name)
    return value


def id_fault(value: str) -> str | None:
    """Return why a string is not a valid id, or None."""
    if not value.strip():
        return "expected an id, got an empty string"
    # trec_eval and fixed-width arrays treat NUL as the end.
    if _NOT_IN_IDS.search(value):
        return f"expected an id without tabs, line breaks or NULs, got {value[:80]!r}"
    # Vector folders store ids in arrays of fixed width.
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES:
        return (
            f"expected an id of at most {MAX_ID_BYTES:,} bytes, got {size:,} bytes starting with "
            f"{value[:40]!r}"
        )
    return None


def integer(text: str, *, path: Path, number: int, field: str, bound: int = LARGEST_INTEGER) -> int:
    """Parse a decimal integer.

    Args:
        bound: Largest absolute value, because native code has fixed-width integers.

    Raises:
        DataError: If the text is not a decimal integer or is out of bounds.
    """
    # int() would also accept "1_000" and digits of other scripts.
    if not _DECIMAL.fullmatch(text):
        raise DataError(
            f"expected an integer, got {text[:40]!r}", path=path, line=number, field=field
        )
    # int() rejects strings of thousands of digits.
    value = int(text) if len(text) <= 40 else None
    if value is None or abs(value) > bound:
        raise DataError(
            f"expected an integer from -{bound:,} to {bound:,}, got {text.strip()[:40]}",
            path=path,
            line=number,
            field=field,
        )
    return value


def describe(value: object) -> str:
    """Describe a JSON or Python value for a message, such as ``the number 7`` or ``a list``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, dict):
        return "an object"
    return (
        "a list" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"
    )
