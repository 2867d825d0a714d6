"""A file that grows block by block and goes on where a killed process left it."""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from dptdr.errors import NegativesError
from dptdr.io.atomic import read_json, write_json

FORMAT = 2


class ResumableFile:
    """Lines in ``FOLDER/mined.jsonl``, and in ``FOLDER/state.json`` how far they are good.

    A block counts once its state stands on disk; what was written behind it is cut off at the next
    start. The bytes that count are checked against their SHA-256 before going on.

    Args:
        folder: The folder of the unfinished work; made where it is missing.
        plan: What identifies the work; another plan may not go on with it.

    Raises:
        NegativesError: If the folder was begun with another plan, or its bytes are not those that
            were written.
    """

    def __init__(self, folder: Path, *, plan: str) -> None:
        self.folder = folder
        self.path = folder / "mined.jsonl"
        self._state_path = folder / "state.json"
        self._plan = plan
        self._digest = hashlib.sha256()
        self.blocks = 0
        self.extra: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        length = self._recover() if self._state_path.is_file() else 0
        self._handle: BinaryIO = self.path.open("r+b" if self.path.is_file() else "w+b")
        self._handle.truncate(length)
        self._handle.seek(length)
        self._length = length

    def append_block(self, content: bytes, *, extra: Any) -> None:
        """Write a block and make it count.

        Args:
            content: The block's bytes.
            extra: What else the next start must know, as JSON can hold it.
        """
        self._handle.write(content)
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._digest.update(content)
        self._length += len(content)
        self.blocks += 1
        write_json(
            self._state_path,
            {
                "format": FORMAT,
                "plan": self._plan,
                "blocks": self.blocks,
                "bytes": self._length,
                "sha256": self._digest.hexdigest(),
                "extra": extra,
            },
        )

    def close(self) -> None:
        """Close the file; it can be gone on with."""
        self._handle.close()

    def finish(self, out: Path) -> None:
        """Put the finished file in its place.

        Args:
            out: Where it shall stand.
        """
        self.close()
        out.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(out)

    def _recover(self) -> int:
        state = read_json(self._state_path)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise NegativesError(
                f"{self._state_path}: expected a state of format {FORMAT}; remove {self.folder} to "
                "begin anew"
            )
        if state["plan"] != self._plan:
            raise NegativesError(
                f"{self.folder} was begun with other data, sources or settings; give the same ones "
                "to go on, or remove it to begin anew"
            )
        left = int(state["bytes"])
        if self.path.is_file():
            with self.path.open("rb") as handle:
                while left and (chunk := handle.read(min(left, 1 << 20))):
                    self._digest.update(chunk)
                    left -= len(chunk)
        if left or self._digest.hexdigest() != state["sha256"]:
            raise NegativesError(
                f"{self.path}: its bytes are not those that were written; remove {self.folder} to "
                "begin anew"
            )
        self.blocks, self.extra = int(state["blocks"]), state["extra"]
        return int(state["bytes"])
