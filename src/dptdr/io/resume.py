"""One protocol for the outputs of all stages: complete, resumed or refused.

The same inputs and settings once more: a complete output is kept and said to be complete, a partial
one is continued. Other settings are refused by name, unless the caller overwrites. One process at
a time writes an output. Beside ``OUT`` are hidden files::

    .OUT.made.json   settings of the output; once it is complete, also its files and their sizes
    .OUT.lock        held while a process writes: its number, its machine and since when
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dptdr.errors import DataError, OutputError
from dptdr.io.atomic import read_json, recover_folder, remove_leftovers, write_json, writing

_WIDEST_VALUE = 60


class Output:
    """An output that only this process may write; made by :func:`claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: Any = None
        """What :meth:`finish` kept, now or when the output was made; as JSON values."""
        self._record = path.with_name(f".{path.name}.made.json")
        self._settings: dict[str, Any] = {}
        self._work: Path | None = None

    def begin(
        self,
        settings: Mapping[str, Any],
        *,
        work: Path | None = None,
        began: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> bool:
        """Decide whether there is work to do, and record the settings if so.

        Args:
            work: Folder of the unfinished work.
            began: Settings of the work as an earlier version recorded them elsewhere.
            overwrite: Start over, whatever is there. An old output stays until it is replaced.

        Returns:
            Whether the output is complete.

        Raises:
            OutputError: If output or unfinished work have other settings or unknown ones, or the
                output was changed after it was complete.
        """
        self._settings, self._work = _plain(settings), work
        there = exists(self.path)
        record = None
        if overwrite:
            if work is not None:
                with writing(work):
                    shutil.rmtree(work, ignore_errors=not work.exists())
        elif there or (work is not None and exists(work)):
            record = self._read() or (None if began is None else {"settings": began})
            if record is None:
                where = self.path if there else work
                raise OutputError(
                    "exists already, and what it was made from is not recorded; choose another "
                    "output, or overwrite it (--overwrite)",
                    path=where,
                )
            check_same(record["settings"], self._settings, path=self.path)
        if there and record is not None and record.get("files") is not None:
            if record["files"] != _sizes(self.path):
                raise OutputError(
                    "was changed after it was complete; choose another output, or overwrite it "
                    "(--overwrite)",
                    path=self.path,
                )
            say_complete(self.path)
            self.result = record.get("result")
            return True
        write_json(self._record, {"settings": self._settings, "files": None})
        return False

    def finish(self, result: Any = None) -> None:
        """Record that the output is complete.

        Args:
            result: What a later call needs to return the same, as JSON values.
        """
        self.result = json.loads(json.dumps(result))
        facts = {"settings": self._settings, "files": _sizes(self.path), "result": self.result}
        write_json(self._record, facts)

    def forget(self) -> None:
        """Remove the record of an output that was never written."""
        if (
            self._settings
            and not exists(self.path)
            and (self._work is None or not exists(self._work))
        ):
            self._record.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """Return the record, or None if it is missing or unreadable."""
        try:
            record = read_json(self._record)
        except DataError:
            return None
        complete = isinstance(record, dict) and isinstance(record.get("settings"), dict)
        return record if complete else None


def check_same(began: Mapping[str, Any], now: Mapping[str, Any], *, path: Path) -> None:
    """Refuse an output that was made with other settings.

    Raises:
        OutputError: If settings differ; names all of them.
    """
    old, new = _flat(_plain(began)), _flat(_plain(now))
    differences = [
        f"{key}: was {_shown(old, key)}, is {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise OutputError(
            "cannot resume: these settings differ from the original run: "
            f"{'; '.join(differences)}; give the same settings, choose another output, or "
            "overwrite it (--overwrite)",
            path=path,
        )


def say_complete(path: Path) -> None:
    """Say on standard error that an output needs no work."""
    sys.stderr.write(f"{path}: complete, nothing to do\n")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON would return them."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return plain


def _flat(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = repr(values[key])
    return text if len(text) <= _WIDEST_VALUE else f"{text[: _WIDEST_VALUE - 3]}..."


def exists(path: Path) -> bool:
    """Return whether ``path`` exists and is not an empty folder."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _sizes(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {
        file.relative_to(path).as_posix(): file.stat().st_size for file in files if file.is_file()
    }


@contextlib.contextmanager
def claim(
    path: Path,
    *,
    mark: str | None = None,
    format: str | None = None,
    part: tuple[int, int] | None = None,
) -> Iterator[Output]:
    """Try an output and lock it.

    What a killed process left beside the output is removed.

    Args:
        mark: The file by which a folder of ours is known; another folder with anything in it is
            never replaced. ``None`` where the output is a file.
        format: What that file says of itself, where several kinds of folders have such a file.
        part: Part and number of parts, where several processes fill one folder together: only
            the same part is refused a second time.

    Raises:
        OutputError: If it cannot be written, something else is there, or another process holds it.
    """
    path = Path(path)
    try_outputs(path, folders=mark is not None)
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked(path, f".{path.name}.lock", shared=part is not None))
        if part is not None:
            name = f".{path.name}.{part[0]}-of-{part[1]}.lock"
            locks.enter_context(locked(path, name))
        recover_folder(path)
        remove_leftovers(path)
        if mark is not None and exists(path):
            _check_ours(path, mark=mark, format=format)
        output = Output(path)
        try:
            yield output
        finally:
            output.forget()


def _check_ours(path: Path, *, mark: str, format: str | None) -> None:
    found = f"no {mark} in it"
    if (path / mark).exists():
        record = None
        # A damaged one may be overwritten, and is refused by the stage where it is not.
        with contextlib.suppress(DataError):
            record = read_json(path / mark)
        kind = record.get("format") if isinstance(record, dict) else None
        if format is None or kind in (format, None):
            return
        found = f"its {mark} says '{kind}', not '{format}'"
    raise OutputError(f"something else is there ({found}); choose a new or empty folder", path=path)


def try_outputs(*paths: Path | None, folders: bool = False, inputs: Sequence[Any] = ()) -> None:
    """Make sure that outputs can be written, before any work.

    Args:
        paths: Files, or folders; ``None``, and ``-`` for standard output, are skipped.
        folders: Whether they are folders.
        inputs: What is read, see :func:`refuse_replacing`.

    Raises:
        OutputError: If an output would replace an input, a name is not UTF-8, a file is where a
            folder should be or the reverse, or the parent folder cannot be made or written to.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise OutputError(
                f"{os.fsencode(path)!r}: expected a name in UTF-8; choose another name, or set a "
                "UTF-8 locale"
            ) from None
        refuse_replacing([path], inputs)
        if path.name in ("", ".."):
            raise OutputError(f"expected the name of an output, got '{path}'; give it a name")
        with writing(path):
            if path.exists() and path.is_dir() is not folders:
                found, wanted = ("file", "folder") if folders else ("folder", "file")
                raise OutputError(
                    f"expected a {wanted}, got a {found}; choose another name", path=path
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass


def refuse_replacing(outputs: Sequence[Path], inputs: Sequence[Any]) -> None:
    """Refuse outputs that would replace an input, or a file of an input folder.

    Args:
        outputs: Files or folders to write.
        inputs: Paths; other values, and names of what is no path here, are skipped.

    Raises:
        OutputError: If one would; names both.
    """
    for given in inputs:
        # A name is no folder: an encoder `minilm` may become a task `minilm`.
        if not isinstance(given, str | Path) or not str(given) or not Path(given).exists():
            continue
        for path in outputs:
            if str(path) != "-" and _replaces(path, Path(given)):
                raise OutputError(
                    f"{path}: expected an output apart from the input, got one that would replace "
                    f"{given}; choose another name"
                )


def refuse_filled(path: Path) -> None:
    """Refuse an output folder that holds anything, for writers that cannot tell their own.

    Raises:
        OutputError: If something is there.
    """
    if exists(path):
        raise OutputError(
            "expected a new or empty folder to write, got one with files; choose another name",
            path=path,
        )


def _replaces(output: Path, given: Path) -> bool:
    real, source = output.resolve(), given.resolve()
    if source.is_relative_to(real):
        return True
    if not real.is_file():
        return False
    if source.is_file():
        return real.samefile(source)
    if not real.is_relative_to(source):
        return False
    # Other files may lie in a data folder, such as negatives.
    data = {"corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz", "qrels"}
    is_data = any((source / name).exists() for name in data)
    return not is_data or real.relative_to(source).parts[0] in data


@contextlib.contextmanager
def locked(path: Path, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock file beside an output; the system releases it when the process ends.

    Args:
        name: Name of the lock file.
        shared: Whether others may hold the lock too, if they share it.
        wait: Whether to wait for the holder.

    Yields:
        Nothing.

    Raises:
        OutputError: If another process holds it; says which.
    """
    lock = path.with_name(name)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with writing(lock):
        descriptor = _lock(path, lock, kind=kind)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Removed by the last holder, and only while held.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, lock: Path, *, kind: int) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"is being written by {holder or 'another process'}; wait for it, or choose "
                "another output",
                path=path,
            ) from None
        except OSError as error:
            # Some network file systems have no locks; better unguarded than not at all.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(descriptor)
                raise
        with contextlib.suppress(FileNotFoundError):
            # The holder before may have removed the file between our two calls.
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
                line = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, line.encode(), 0)
                return descriptor
        os.close(descriptor)
