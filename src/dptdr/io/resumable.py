"""A file written in blocks that can be resumed after a kill."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from dptdr.errors import NegativesError
from dptdr.io.atomic import read_json, write_json, writing
from dptdr.io.lines import describe

FORMAT = 3


class ResumableFile:
    """``FOLDER/mined.jsonl``, with its valid length and state in ``FOLDER/state.json``.

    A block counts as written once its state is on disk; anything after it is truncated on resume.
    The valid part is checked against its SHA-256 before resuming.

    Args:
        folder: The folder of the unfinished work; created if missing.

    Raises:
        NegativesError: If the file was modified.
        OutputError: If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mined.jsonl"
        self._state_path = folder / "state.json"
        self._digest = hashlib.sha256()
        self.blocks = 0
        self.extra: Any = None
        length = self._recover() if self._state_path.is_file() else 0
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._handle: BinaryIO = self.path.open("r+b" if self.path.is_file() else "w+b")
            self._handle.truncate(length)
            self._handle.seek(length)
        self._length = length

    def append_block(self, content: bytes, *, extra: Any) -> None:
        """Write a block and record it.

        Args:
            extra: Additional state for resuming, as JSON values.
        """
        with writing(self.path):
            self._handle.write(content)
            self._handle.flush()
            os.fsync(self._handle.fileno())
        self._digest.update(content)
        self._length += len(content)
        self.blocks += 1
        state = {
            "format": FORMAT,
            "blocks": self.blocks,
            "bytes": self._length,
            "sha256": self._digest.hexdigest(),
            "extra": extra,
        }
        write_json(self._state_path, {**state, "checksum": _checksum(state)})

    def close(self) -> None:
        """Close the file, which can be resumed later."""
        self._handle.close()

    def finish(self, out: Path) -> None:
        """Move the finished file to ``out``."""
        self.close()
        with writing(out):
            self.path.replace(out)

    def _recover(self) -> int:
        state = read_json(self._state_path)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else describe(state)
            raise NegativesError(
                f"{self._state_path}: unsupported resume file (expected format {FORMAT}, got "
                f"{found}); use --overwrite to start over"
            )
        if state.pop("checksum", None) != _checksum(state):
            raise NegativesError(
                f"{self._state_path}: damaged: its checksum does not match; use --overwrite to "
                "start over"
            )
        length, blocks = int(state["bytes"]), int(state["blocks"])
        left = length
        if self.path.is_file():
            with self.path.open("rb") as handle:
                while left and (chunk := handle.read(min(left, 1 << 20))):
                    self._digest.update(chunk)
                    left -= len(chunk)
        if left or self._digest.hexdigest() != state.get("sha256"):
            raise NegativesError(
                f"{self.path}: the file was modified since it was written; use --overwrite to "
                "start over"
            )
        self.blocks, self.extra = blocks, state.get("extra")
        return length


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
