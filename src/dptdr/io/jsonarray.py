"""Read JSON arrays larger than memory, one element at a time."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dptdr.errors import DataError
from dptdr.io.jsonkeys import RepeatedKey, unique_keys
from dptdr.io.lines import READ_FAULTS, open_bytes

_CHUNK_BYTES = 1 << 20
# An error this far from the end of the buffer is not due to a truncated literal.
_CUT_MARGIN = 16
_LONGEST_STRING = 1 << 26
_MARK = re.compile(r"\ufeff?\s*")
_GAP = re.compile(r"[\s,]*")


class Element(NamedTuple):
    """An array element, with its first line and its byte range in the decompressed file."""

    value: Any
    line: int
    start: int
    end: int


def is_json_array(path: Path) -> bool:
    """Check whether the first non-whitespace character of a file is ``[``.

    Raises:
        DataError: If the file cannot be read.
    """
    with open_bytes(path) as handle:
        try:
            start = handle.read(1024)
        except READ_FAULTS as error:
            raise DataError(f"cannot be read: {error}", path=path) from None
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def array_elements(path: Path) -> Iterator[Element]:
    """Yield the elements of a file that consists of one JSON array.

    Uses memory for one chunk and the largest element.

    Raises:
        DataError: If the file is missing, malformed, truncated or not a JSON array.
    """
    with open_bytes(path) as handle:
        yield from _Reader(path, handle).elements()


class _Reader:
    """A sliding text buffer over the file; ``at`` is the position in it."""

    def __init__(self, path: Path, handle: io.BufferedReader) -> None:
        self.path = path
        self.handle = handle
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder(object_pairs_hook=unique_keys)
        self.text = ""
        self.at = 0
        self.byte = 0
        self.line = 1
        self.ended = False

    def elements(self) -> Iterator[Element]:
        self.fill(_CHUNK_BYTES)
        self.skip(_MARK)
        if self.text[self.at : self.at + 1] != "[":
            raise self.fault("expected a JSON array starting with [", self.at)
        self.move(self.at + 1)
        while True:
            self.skip(_GAP)
            if self.text[self.at : self.at + 1] == "]":
                return
            line, start = self.line, self.byte
            value, end = self.decode()
            self.move(end)
            yield Element(value, line, start, self.byte)

    def decode(self) -> tuple[Any, int]:
        more = _CHUNK_BYTES
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                unfinished = "Unterminated string" in error.msg
                bound = _LONGEST_STRING if unfinished else _CUT_MARGIN
                if not self.ended and error.pos >= len(self.text) - bound:
                    self.fill(more)
                    more *= 2
                    continue
                if self.ended and (unfinished or error.pos >= len(self.text) - _CUT_MARGIN):
                    reason = "the file ends inside the array, so it is truncated; download it again"
                else:
                    reason = f"expected JSON, {error.msg}"
                raise self.fault(reason, min(error.pos, len(self.text))) from None
            except RepeatedKey as error:
                raise self.fault(str(error), self.at) from None
            except (ValueError, RecursionError) as error:
                # The parser fails on thousands of digits or nested brackets.
                raise self.fault(
                    f"expected valid JSON, but parsing failed: {error}", self.at
                ) from None
            # A number may continue in the next chunk: -1 may be the start of -1e-7.
            number = isinstance(value, int | float)
            if self.ended or not number or self.text[end : end + 1] in tuple(", ]\t\r\n"):
                return value, end
            self.fill(more)

    def skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            match = pattern.match(self.text, self.at)
            self.move(match.end() if match else self.at)
            if self.at < len(self.text) or self.ended:
                return
            self.fill(_CHUNK_BYTES)

    def move(self, to: int) -> None:
        passed = self.text[self.at : to]
        self.byte += len(passed.encode("utf-8"))
        self.line += passed.count("\n")
        self.at = to

    def fill(self, size: int) -> None:
        try:
            chunk = self.handle.read(size)
            self.ended = len(chunk) < size
            # Drop consumed text, so that the buffer does not grow with the file.
            self.text = self.text[self.at :] + self.decoder.decode(chunk, self.ended)
            self.at = 0
        except UnicodeDecodeError as error:
            raise self.fault(f"expected UTF-8 text, {error.reason}", len(self.text)) from None
        except READ_FAULTS as error:
            raise self.fault(f"cannot be read: {error}", len(self.text)) from None

    def fault(self, reason: str, position: int) -> DataError:
        line = self.line + self.text.count("\n", self.at, position)
        return DataError(reason, path=self.path, line=line)
