"""Writing files so that a crash leaves the old state or the new one, never half of it."""

import contextlib
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dptdr.errors import DataError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    On any error the temporary file is removed and what stood at ``path`` stays.

    Args:
        path: Where the finished file shall stand; missing parent folders are made.

    Yields:
        The temporary file, opened for binary writing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes private files; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; it takes the place of ``path`` when the block ends.

    A folder that stood at ``path`` is moved aside first and removed last, so that at every moment
    either the old or the new one is complete on disk. A process killed between the two renames
    leaves the old folder under ``.NAME.old``, from where :func:`recover_folder` brings it back.

    Args:
        path: Where the finished folder shall stand; missing parents are made.

    Yields:
        The temporary folder to write into.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    begin = f".{path.name}.{_machine()}-"
    _remove_leftovers(path.parent, begin=begin)
    temporary = Path(
        tempfile.mkdtemp(prefix=f"{begin}{os.getpid()}.", suffix=".tmp", dir=path.parent)
    )
    aside = path.parent / f".{path.name}.old"
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for file in temporary.rglob("*"):
            if file.is_file():
                # safetensors writes for the owner alone; a server may run as someone else.
                file.chmod(0o666 & ~umask)
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _machine() -> str:
    """Return what tells this machine's processes from those of others on shared storage."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_leftovers(parent: Path, *, begin: str) -> None:
    """Remove temporary folders of processes of this machine that were killed."""
    for folder in parent.glob(f"{glob.escape(begin)}*.tmp"):
        number = folder.name.removeprefix(begin).partition(".")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def recover_folder(path: Path) -> None:
    """Bring back a folder that a killed :func:`atomic_folder` had moved aside."""
    aside = path.parent / f".{path.name}.old"
    if aside.exists() and not path.exists():
        aside.rename(path)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON with sorted keys, atomically.

    Args:
        path: The file.
        value: What to write.
        indent: Spaces per level; ``None`` for one line, written many times as quickly.
    """
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_file(path) as handle:
        handle.write(text.encode("utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The parsed value.

    Raises:
        DataError: If the file is missing or is not JSON; names file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text, {error.reason}", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", path=path) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"expected JSON, {error.msg}", path=path, line=error.lineno) from None
    except RecursionError:
        raise DataError("expected JSON, got lists or objects nested too deep", path=path) from None
    except ValueError as error:
        # A number of more digits than Python converts.
        raise DataError(f"expected JSON, {error}", path=path) from None


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
