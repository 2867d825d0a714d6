"""Atomic writes: a crash leaves either the old state or the new one."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from dptdr.errors import DataError, OutputError
from dptdr.io.jsonkeys import RepeatedKey, unique_keys


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert any failure to write ``path`` to an :class:`OutputError`.

    Raises:
        OutputError: If the block raises an ``OSError``, or a safetensors I/O error.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, SafetensorError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
            # What shutil.copytree collects: source, target and reason of each file.
            reason = str(error.args[0][0][-1])
        name = getattr(error, "filename", None)
        if name and Path(name) != path and not str(name).endswith(_TEMPORARY):
            reason += f": {name}"
        advice = _ADVICE.get(getattr(error, "errno", 0), "choose another place, then run again")
        raise OutputError(f"cannot be written ({reason}); {advice}", path=path) from error


_ADVICE = {
    errno.ENOSPC: "make room, then run again",
    errno.EDQUOT: "make room, then run again",
    errno.EMFILE: "allow more open files (ulimit -n), then run again",
    errno.ENFILE: "close other programs, then run again",
}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to ``path`` if the block succeeds.

    On error, the temporary file is deleted and ``path`` is left unchanged. A device or pipe, such
    as ``/dev/stdout``, is written directly. Missing parent folders are created.

    Raises:
        OutputError: If the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as handle:
                yield handle
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=_prefix(path), suffix=_TEMPORARY, dir=path.parent
        )
        try:
            with os.fdopen(descriptor, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            # mkstemp creates private files; apply the usual permissions.
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` if the block succeeds.

    An existing folder is moved aside first and deleted last, so a complete folder is on disk at all
    times. If the process is killed between the two renames, the old folder is left as ``.NAME.old``
    and :func:`recover_folder` restores it. Missing parent folders are created.

    Raises:
        OutputError: If the folder cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_TEMPORARY, dir=path.parent))
        aside = path.parent / f".{path.name}.old"
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            for file in temporary.rglob("*"):
                if file.is_file():
                    # safetensors creates private files, but a server may run as a different user.
                    file.chmod(0o666 & ~umask)
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            temporary.rename(path)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            recover_folder(path)
            if isinstance(error, OutputError) and temporary in (error.path or path).parents:
                raise OutputError(error.reason, path=path) from error
            raise
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Restore a folder that a killed :func:`atomic_folder` moved aside."""
    aside = path.parent / f".{path.name}.old"
    # A link is none of ours.
    if aside.is_dir() and not aside.is_symlink() and not path.exists():
        aside.rename(path)


_TEMPORARY = ".tmp"
_HOST = hashlib.sha256(socket.gethostname().encode("utf-8", "replace")).hexdigest()[:8]


def _prefix(path: Path) -> str:
    """Return the prefix of temporary names, which identifies this process."""
    return f".{path.name}.{_HOST}-{os.getpid()}."


def remove_leftovers(path: Path) -> None:
    """Delete temporary files and folders for ``path`` left by dead processes.

    Those of other machines are kept, because there is no way to tell whether their process is
    alive.
    """
    # Versions up to 0.1 used random letters only; no other process may use the same path.
    name = re.compile(
        rf"\.{re.escape(path.name)}\.(?:([0-9a-f]{{8}})-(\d+)\.)?[a-z0-9_]{{8}}{re.escape(_TEMPORARY)}"
    )
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        owner = name.fullmatch(entry.name)
        if owner and (not owner[1] or (owner[1] == _HOST and not is_alive(int(owner[2])))):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Check whether a process on this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON with sorted keys, atomically.

    Args:
        indent: Spaces per level; ``None`` for a single line, which is much faster.
    """
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_file(path) as handle:
        handle.write(text.encode("utf-8"))


def read_regular(path: Path) -> bytes:
    """Read a whole file, which must be regular: a pipe or device may block or never end.

    Raises:
        DataError: If the file is missing, not regular, or unreadable.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a pipe, socket or device"
            raise DataError(f"expected a regular file, got {kind}", path=path)
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read ({reason})", path=path) from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If the file is missing, not regular, not valid JSON, or has a key twice.
    """
    data = read_regular(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text, {error.reason}", path=path) from None
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise DataError(f"expected JSON, {error.msg}", path=path, line=error.lineno) from None
    except RepeatedKey as error:
        raise DataError(str(error), path=path) from None
    except (ValueError, RecursionError) as error:
        # The parser fails on thousands of digits or nested brackets.
        raise DataError(f"expected valid JSON, but parsing failed: {error}", path=path) from None


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
