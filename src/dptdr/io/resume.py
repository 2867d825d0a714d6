"""The resume protocol shared by the outputs of all stages.

Given the same inputs and settings, a complete output is kept and a partial one is resumed. An
output with different settings is rejected, naming them, unless the caller overwrites it. Only one
process at a time may write an output. Hidden files next to ``OUT`` keep track::

    .OUT.made.json   settings of the output; once complete, also its files and their sizes
    .OUT.lock        held while writing: process id, host and start time
"""

import contextlib
import glob
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dptdr.errors import DataError, OutputError
from dptdr.io.atomic import read_json, recover_folder, remove_leftovers, write_json, writing
from dptdr.io.locks import locked
from dptdr.io.outputs import OURS, exists, refuse_extra, refuse_foreign, try_outputs
from dptdr.io.probe import same_probe

_WIDEST_VALUE = 60


class Output:
    """An output locked by this process; created by :func:`claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: Any = None
        """Result recorded by :meth:`finish`, in this process or an earlier one, as JSON values."""
        self._record = _record_of(path)
        self._settings: dict[str, Any] = {}
        self._work: Path | None = None

    def begin(
        self,
        settings: Mapping[str, Any],
        *,
        work: Path | None = None,
        work_files: Collection[str] | None = None,
        began: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> bool:
        """Check whether the output is complete; if not, record the settings.

        Args:
            work: Folder of the unfinished work.
            work_files: Patterns of its files; with others in it, it is not overwritten.
            began: Settings of the work as recorded elsewhere by an earlier version.
            overwrite: Start over; an existing output is kept until it is replaced.

        Returns:
            True if the output is complete.

        Raises:
            OutputError: If the output or unfinished work has different or unknown settings, or
                the output was modified after completion.
        """
        self._settings, self._work = _plain(settings), work
        if work is not None and began is None:
            self.refuse_unrelated(work)
        there = exists(self.path)
        record = replaced = None
        if overwrite:
            # Before the unfinished work is deleted: a refusal changes nothing.
            replaced = self._replaced()
            if work is not None:
                if work_files is not None:
                    refuse_extra(work, known=work_files)
                with writing(work):
                    shutil.rmtree(work, ignore_errors=not work.exists())
        elif there or (work is not None and exists(work)):
            record = self._read() or (None if began is None else {"settings": began})
            if record is None:
                where = self.path if there else work
                raise OutputError(
                    "already exists, and its settings are unknown; choose a different output, or "
                    "use --overwrite",
                    path=where,
                )
            check_same(record["settings"], self._settings, path=self.path)
        if there and record is not None and record.get("files") is not None:
            if record["files"] != _sizes(self.path):
                raise OutputError(
                    "modified after completion; choose a different output, or use --overwrite",
                    path=self.path,
                )
            say_complete(self.path)
            self.result = record.get("result")
            return True
        # Settings recorded elsewhere are those of a run of ours, from before there were records.
        if not overwrite and began is None:
            replaced = self._replaced()
        facts = {"settings": self._settings, "files": None, "replaced": replaced}
        write_json(self._record, facts)
        return False

    def finish(self, result: Any = None) -> None:
        """Record that the output is complete.

        Args:
            result: Data that a later call needs to return the same result, as JSON values.
        """
        self.result = json.loads(json.dumps(result))
        facts = {"settings": self._settings, "files": _sizes(self.path), "result": self.result}
        write_json(self._record, facts)

    def refuse_unrelated(self, work: Path, *, ours: Collection[str] = ()) -> None:
        """Reject a working folder that no earlier run for this output can have made.

        Args:
            ours: Names in the folder that a run without a record may have left.

        Raises:
            OutputError: If the folder has other files, but there is no record of a run.
        """
        found = {entry.name for entry in work.iterdir()} if work.is_dir() else set()
        if not self._record.exists() and not found <= {*ours}:
            raise OutputError(
                f"contains unrelated files, but is where the unfinished work for {self.path} goes; "
                "choose a different output, or move the folder",
                path=work,
            )

    def refuse_loss(self) -> None:
        """Reject overwriting a folder that has, or may have, files of somebody else.

        Raises:
            OutputError: If it has.
        """
        self._replaced()

    def _replaced(self) -> dict[str, Any] | None:
        """Return the files of the folder that will be replaced, if there is one.

        Raises:
            OutputError: If somebody has added files.
        """
        if not exists(self.path) or not self.path.is_dir():
            return None
        record = self._read() or {}
        # A run that was killed has not replaced them yet.
        files = record.get("files") or record.get("replaced")
        if not isinstance(files, dict):
            # A copy, or of an earlier version.
            refuse_extra(self.path, known=OURS)
            return dict(_sizes(self.path))
        refuse_extra(self.path, known={glob.escape(name) for name in files})
        return files

    def forget(self) -> None:
        """Delete the record of an output that was never written."""
        if (
            self._settings
            and not exists(self.path)
            and (self._work is None or not exists(self._work))
        ):
            self._record.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """Return the record, or None if it is missing or unreadable."""
        return _read_record(self._record)


def _record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.made.json")


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path)
    except DataError:
        return None
    complete = isinstance(record, dict) and isinstance(record.get("settings"), dict)
    return record if complete else None


def recorded_result(path: Path) -> Any:
    """Return the result recorded for a complete output, or None if unknown or modified since."""
    record = _read_record(_record_of(Path(path)))
    if record is None or not exists(path) or record.get("files") != _sizes(Path(path)):
        return None
    return record.get("result")


def check_same(began: Mapping[str, Any], now: Mapping[str, Any], *, path: Path) -> None:
    """Reject an output that was made with different settings.

    Raises:
        OutputError: If settings differ; lists all differences.
    """
    old, new = _flat(_plain(began)), _flat(_plain(now))
    differences = [
        f"{key}: was {was}, is {becomes}"
        for key in sorted(old.keys() | new.keys())
        if not _same(key, old.get(key), new.get(key))
        for was, becomes in [_shown(old, new, key)]
    ]
    if differences:
        raise OutputError(
            "cannot resume: these settings differ from the original run: "
            f"{'; '.join(differences)}; use the same settings, choose a different output, or "
            "use --overwrite",
            path=path,
        )


def _same(key: str, old: Any, new: Any) -> bool:
    # A probe differs a little between machines, and earlier versions did not record it.
    if key.rpartition(".")[2] == "probe":
        return same_probe(old or (), new or ())
    return bool(old == new)


def say_complete(path: Path) -> None:
    """Report on standard error that an output is already complete."""
    sys.stderr.write(f"{path}: complete, nothing to do\n")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they will read back from JSON, to compare them with recorded ones."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return plain


def _flat(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> list[str]:
    """Shorten two different values, so that the difference is visible."""
    texts = [repr(values[key]) if key in values else "absent" for values in (old, new)]
    pairs = enumerate(zip(*texts, strict=False))
    common = next((at for at, (one, other) in pairs if one != other), min(map(len, texts)))
    start = 0 if common < _WIDEST_VALUE - 10 else common - 10
    return [_cut(text, start) for text in texts]


def _cut(text: str, start: int) -> str:
    begin = "..." if start else ""
    rest = text[start:]
    return begin + (rest if len(rest) <= _WIDEST_VALUE else f"{rest[: _WIDEST_VALUE - 3]}...")


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
    """Check that an output can be written, and lock it.

    Leftovers of killed processes are deleted.

    Args:
        mark: File that identifies a folder as ours; any other non-empty folder is never
            replaced. ``None`` if the output is a file.
        format: Format named in that file, if several kinds of folders contain such a file.
        part: Part and number of parts, if several processes fill one folder together; only the
            same part is locked.

    Raises:
        OutputError: If it cannot be written, is not ours, or is locked by another process.
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
        if mark is not None:
            refuse_foreign(path, mark=mark, format=format)
        output = Output(path)
        try:
            yield output
        finally:
            output.forget()
