"""Read splits from a table file, a folder of tables, or a folder saved by ``datasets``."""

import re
from pathlib import Path
from typing import Any

from dptdr.data.formats.columns import TableSettings, split_name
from dptdr.data.formats.pairs import pairs_data
from dptdr.data.formats.source_data import SourceData
from dptdr.data.formats.table_rows import SUFFIXES, is_table, table_rows
from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import read_json

_SPLIT = re.compile(r"(train|dev|validation|valid|val|eval|test)(?=[-._]|$)", re.IGNORECASE)
DATASET_DICT = "dataset_dict.json"
DATASET_STATE = "state.json"


def read_tables(source: Path, settings: TableSettings) -> SourceData:
    """Read tables of pairs, triplets, scored pairs or clicks.

    Args:
        source: A table, a folder of tables named after splits, or a folder saved by ``datasets``.

    Raises:
        DataError: If there are no tables, or the file names do not identify splits.
    """
    if not source.exists():
        raise DataError("no such file or folder", path=source)
    if source.is_file():
        splits = [(settings.split or _named_split(source) or "train", source)]
    elif (source / DATASET_DICT).is_file():
        splits = _dataset_dict(source)
    elif (source / DATASET_STATE).is_file():
        splits = _dataset(source, split=settings.split)
    else:
        splits = _folder(source, split=settings.split)
    if settings.split is not None and any(split != settings.split for split, _ in splits):
        raise ConfigError(f"{source}: splits are named by the files; omit --split")
    files = [path for _, path in splits]
    kinds = dict.fromkeys(path.name.removesuffix(".gz").rpartition(".")[2] for path in files)
    return pairs_data(
        [(split, table_rows(path)) for split, path in splits],
        settings=settings,
        source=", ".join(kinds),
        files=files,
    )


def table_files(folder: Path) -> list[Path]:
    """List the tables of a folder by name, excluding hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and is_table(path) and not path.name.startswith(".")
    )


def _named_split(path: Path) -> str | None:
    match = _SPLIT.match(path.name)
    return split_name(match[1].lower()) if match else None


def _folder(folder: Path, *, split: str | None) -> list[tuple[str, Path]]:
    files = table_files(folder)
    if not files:
        raise DataError(f"expected tables ({', '.join(SUFFIXES)}), got none", path=folder)
    named = [(_named_split(path), path) for path in files]
    unnamed = [path.name for name, path in named if name is None]
    if 0 < len(unnamed) < len(files):
        raise DataError(
            f"expected files named after splits (train, dev, test), got {', '.join(unnamed)}; "
            "move any other files elsewhere",
            path=folder,
        )
    return [(name or split or "train", path) for name, path in named]


def _dataset_dict(folder: Path) -> list[tuple[str, Path]]:
    names = _entry(folder / DATASET_DICT, "splits")
    return [
        (split_name(str(name)), path)
        for name in names
        for _, path in _dataset(folder / str(name), split="")
    ]


def _dataset(folder: Path, *, split: str | None) -> list[tuple[str, Path]]:
    state = folder / DATASET_STATE
    files = _entry(state, "_data_files")
    if not all(isinstance(file, dict) and "filename" in file for file in files):
        raise DataError("expected a 'filename' for each file", path=state, field="_data_files")
    if split is None:
        own = read_json(state).get("_split")
        split = split_name(own) if isinstance(own, str) else "train"
    return [(split, folder / str(file["filename"])) for file in files]


def _entry(path: Path, name: str) -> list[Any]:
    value = read_json(path)
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError("expected a list, as written by `save_to_disk`", path=path, field=name)
    if not found:
        raise DataError("the data set contains no rows", path=path.parent)
    return found
