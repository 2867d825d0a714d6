"""Where stages leave what they made: one folder for each content, whatever recipe asks for it.

``WORK/store/KIND-KEY/`` holds a stage's output and, once it is done, ``stage.json`` with settings,
inputs, files and times. A folder without it is unfinished work, which the stage's command resumes.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import read_json, write_json

DONE = "stage.json"
_KEY_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Place:
    """A stage's folder.

    Args:
        folder: The folder.
        key: What identifies settings and inputs.
        output: The stage's output in it.
    """

    folder: Path
    key: str
    output: Path

    @property
    def done(self) -> bool:
        """Whether the stage is done and its output stands there as it was left."""
        return self.record() is not None

    @property
    def started(self) -> bool:
        """Whether there is unfinished work."""
        return self.folder.is_dir() and not self.done

    def record(self) -> dict[str, Any] | None:
        """Return what ``stage.json`` says, None if the stage is not done or its files changed."""
        try:
            value = read_json(self.folder / DONE)
        except DataError:
            return None
        if not isinstance(value, dict) or value.get("key") != self.key:
            return None
        files = value.get("files", {})
        intact = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, size in files.items()
        )
        return value if files and intact else None

    def finish(self, facts: dict[str, Any]) -> None:
        """Write ``stage.json``; before that the stage counts as unfinished.

        Args:
            facts: Settings, inputs, command, times.

        Raises:
            DataError: If the command left no output.
        """
        if not self.output.exists():
            raise DataError("the stage ended without its output", path=self.output)
        write_json(self.folder / DONE, {**facts, "key": self.key, "files": self._files()})

    def _files(self) -> dict[str, int]:
        output = self.output
        files = [output] if output.is_file() else sorted(output.rglob("*"))
        return {
            file.relative_to(self.folder).as_posix(): file.stat().st_size
            for file in files
            if file.is_file()
        }


def place_of(work: Path, *, do: str, key: str, output: str) -> Place:
    """Return the folder of a stage.

    Args:
        work: The recipe's work folder.
        do: The stage's kind.
        key: What identifies settings and inputs.
        output: Name of the output.

    Returns:
        The place, whether or not it exists.
    """
    folder = work / "store" / f"{do}-{key[:_KEY_DIGITS]}"
    return Place(folder=folder, key=key, output=folder / output)


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the work folder alone; a second run would do the same work twice.

    Raises:
        ConfigError: If another run holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{work}: another `dptdr run` works here; wait for it, or give another --work"
            ) from None
        yield


def name_stage(work: Path, name: str, place: Place) -> None:
    """Let ``WORK/stages/NAME`` point to a stage's folder, so that people find it."""
    links = work / "stages"
    links.mkdir(parents=True, exist_ok=True)
    link = links / name
    target = Path("..") / "store" / place.folder.name
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()
    with contextlib.suppress(OSError):
        link.symlink_to(target)
