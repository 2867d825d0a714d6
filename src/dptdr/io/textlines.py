"""Reading text files line by line, with errors that name the file and the line."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from dptdr.errors import DataError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every line that is not blank with its number, without its line end.

    Lines end with LF or CR LF only: Unicode has further line separators, and passages hold them.

    Args:
        path: A UTF-8 text file; a byte order mark is skipped.

    Yields:
        Line number, counted from 1, and the line's text.

    Raises:
        DataError: If the file is missing, is a folder, or holds bytes that are not UTF-8.
    """
    try:
        with Path(path).open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"expected UTF-8 text, found byte {raw[error.start]:#04x}; "
                        "convert the file to UTF-8",
                        path=path,
                        line=number,
                    ) from None
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except IsADirectoryError:
        raise DataError("expected a file, this is a folder", path=path) from None
