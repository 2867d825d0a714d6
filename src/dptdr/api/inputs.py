"""Handle inputs of the stages: data as a folder or Python rows, devices and progress."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from dptdr.config.arguments import check_counts
from dptdr.errors import ConfigError, DataError
from dptdr.io.progress import progress as progress_bar

AnyPath: TypeAlias = Path | str
Rows: TypeAlias = Iterable[Any] | Mapping[str, Iterable[Any]]
"""Dicts, tuples, a ``datasets.Dataset`` or a pandas ``DataFrame``; or a mapping by split."""
AnyData: TypeAlias = AnyPath | Rows
Phase: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

_MAX_THREADS = 1024
_ROWS = "rows"


@contextlib.contextmanager
def data_folder(data: AnyData, *, split: str = "train") -> Iterator[Path]:
    """Yield the folder of the data, writing Python rows to a temporary folder first.

    The same rows give the same bytes, so a stage recognises previous work.

    Args:
        data: A folder, or rows.
        split: Split of rows that are not in a mapping by split.

    Raises:
        DataError: If a row is malformed.
    """
    if isinstance(data, str | os.PathLike):
        if not Path(data).exists():
            raise DataError("expected a BEIR folder, got no such folder", path=Path(data))
        yield Path(data)
        return
    if not isinstance(data, Iterable):
        raise ConfigError(f"data: expected a folder or rows, got {type(data).__name__}")
    from dptdr.data.formats.columns import TableSettings
    from dptdr.data.formats.pairs import folder_from_records
    from dptdr.io.temporary import temporary_folder

    with temporary_folder(_ROWS) as place:
        settings = TableSettings(split=split)
        done = folder_from_records(data, out=place / _ROWS, settings=settings)
        for reason, count in done.dropped.items():
            sys.stderr.write(f"data: dropped {count:,} {reason}\n")
        yield place / _ROWS


def negatives_of_rows(folder: Path, data: AnyData) -> Path | None:
    """Return the training file written for rows with hard negatives, if any."""
    path = folder / "negatives-train.jsonl"
    return path if not isinstance(data, str | os.PathLike) and path.is_file() else None


def optional_path(path: AnyPath | None) -> Path | None:
    """Convert a path to a ``Path``, passing through ``None``.

    Raises:
        ConfigError: If it is empty.
    """
    if path is not None and not str(path):
        raise ConfigError("expected a path, got an empty text")
    return None if path is None else Path(path)


def resolve_device(name: str) -> str:
    """Resolve a device name to an available torch device."""
    import torch

    accelerator = "cuda" if torch.cuda.is_available() else None
    if accelerator is None and torch.backends.mps.is_available():
        accelerator = "mps"
    if name == "auto":
        return accelerator or "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "cpu" if accelerator is None else f"cpu or {accelerator}"
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected an available device, got '{name}' ({reason}); use auto, {there}"
        ) from None
    return name


def set_threads(threads: int | None) -> None:
    """Set torch's number of threads; ``None`` leaves it unchanged."""
    check_counts(threads=threads)
    if threads is not None and threads > _MAX_THREADS:
        raise ConfigError(f"threads: expected at most {_MAX_THREADS:,}, got {threads:,}")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def core_count() -> int:
    """Return the number of available CPU cores."""
    return os.cpu_count() or 1


def phases(progress: object) -> Phase:
    """Return a context manager that shows the progress of phases, if enabled."""
    return progress_bar if progress else _without_progress


@contextlib.contextmanager
def _without_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    del what
    yield lambda done, total: None
