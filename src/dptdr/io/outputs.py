"""Checks of output paths before any work begins."""

import contextlib
import fnmatch
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dptdr.errors import DataError, OutputError
from dptdr.io.atomic import read_json, remove_leftovers, writing

# Reports and runs are never named so.
_ARTEFACTS = (
    "task.json",
    "manifest.json",
    "export.json",
    "meta.json",
    "corpus.jsonl",
    "queries.jsonl",
    "config.json",
    "tokenizer.json",
    "modules.json",
)
OURS = (
    *("task.json", "README.md", "modules.json", "config*.json", "*.safetensors"),
    *("manifest.json", "plan.json", "shards/[0-9]*", "index.bin", "bm25/*.npy", "bm25/*.json"),
    *("vectors/manifest.json", "vectors/plan.json", "vectors/shards/[0-9]*"),
    *("pretraining.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "sentence_bert_config.json", "[12]_*/config.json"),
)
"""Files of tasks, vectors, indexes and encoders."""
_BINARY = (".npy", ".safetensors", ".onnx", ".faiss", ".bin", ".pt")


def exists(path: Path) -> bool:
    """Check that ``path`` exists and is not an empty folder."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def try_outputs(
    *paths: Path | None,
    folders: bool = False,
    inputs: Sequence[Any] = (),
    suffix: str | None = None,
) -> None:
    """Check that outputs can be written before doing any work.

    Args:
        paths: Files or folders; ``None``, and ``-`` for standard output, are skipped.
        folders: The paths are folders.
        inputs: Inputs, see :func:`refuse_replacing`.
        suffix: Suffix of the folder beside each output where unfinished work goes.

    Raises:
        OutputError: If an output would replace an input, a name is not UTF-8, a file exists
            instead of a folder or vice versa, the path is a link, or the parent folder is not
            writable.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise OutputError(
                f"{os.fsencode(path)!r}: expected a UTF-8 name; choose a different name, or set a "
                "UTF-8 locale"
            ) from None
        if path.name in ("", ".."):
            raise OutputError(
                f"expected a named output, got '{path}'; specify a file or folder name"
            )
        refuse_replacing([path], inputs)
        if suffix is not None:
            refuse_replacing([path.with_name(path.name + suffix)], inputs)
        with writing(path):
            if path.is_symlink() and (folders or path.is_file() or not path.exists()):
                raise OutputError(
                    "expected a path that is not a link, which would be replaced; use its target, "
                    f"{path.resolve()}",
                    path=path,
                )
            if not folders and path.is_file() and _is_artefact(path):
                raise OutputError(
                    "expected an output that is not part of a task, data, vectors or an index; "
                    "choose a different name",
                    path=path,
                )
            if path.exists() and path.is_dir() is not folders:
                found, wanted = ("file", "folder") if folders else ("folder", "file")
                raise OutputError(
                    f"expected a {wanted}, got a {found}; choose a different name", path=path
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            with tempfile.TemporaryFile(dir=path.parent):
                pass


def _is_artefact(path: Path) -> bool:
    """Check whether a file is one that only whole folders of ours, or encoders, consist of."""
    return path.name in _ARTEFACTS or path.suffix in _BINARY


def refuse_replacing(outputs: Sequence[Path], inputs: Sequence[Any]) -> None:
    """Reject outputs that would replace an input, or a file of an input folder.

    Args:
        inputs: Paths; values that are not existing paths are skipped.

    Raises:
        OutputError: If an output would replace an input; names both.
    """
    for given in inputs:
        # A name is not a folder: the encoder `minilm` may become a task `minilm`.
        if not isinstance(given, str | Path) or not str(given) or not Path(given).exists():
            continue
        for path in outputs:
            if str(path) != "-" and _replaces(path, Path(given)):
                raise OutputError(
                    f"{path}: expected an output separate from the input, got one that would "
                    f"replace {given}; choose a different name"
                )


def refuse_nested(one: Path, other: Path) -> None:
    """Reject two folders of which one is, or is in, the other.

    Raises:
        OutputError: If so; names both.
    """
    for inner, outer in ((one, other), (other, one)):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise OutputError(
                f"{inner}: expected an output separate from {outer}; choose a different name"
            )


def refuse_filled(path: Path) -> None:
    """Reject a non-empty output folder, for writers that cannot recognise their own.

    Raises:
        OutputError: If the folder is not empty.
    """
    if exists(path):
        raise OutputError(
            "expected a new or empty output folder, got one with files; choose a different name",
            path=path,
        )


def _replaces(output: Path, given: Path) -> bool:
    real, source = output.resolve(), given.resolve()
    if source.is_relative_to(real):
        return True
    if not real.is_file():
        return False
    # A data folder may contain other files, such as negatives.
    names = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz", "qrels")
    parts = [source / name for name in names if (source / name).exists()] or [source]
    # A member may be a link to the output.
    files = (file for part in parts for file in ([part] if part.is_file() else part.rglob("*")))
    return any(file.is_file() and real.samefile(file) for file in files)


def refuse_extra(path: Path, *, known: Collection[str]) -> None:
    """Reject a folder that is to be replaced, but has entries that would be lost.

    Args:
        known: Patterns of the files that a folder of this kind consists of, relative to it.

    Raises:
        OutputError: If there are others; names them.
    """
    files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    found = sorted(file.relative_to(path).as_posix() for file in files)
    extra = [
        name
        for name in found
        # `*` matches `/`, too.
        if not any(
            fnmatch.fnmatch(name, one) and name.count("/") == one.count("/") for one in known
        )
    ]
    if extra:
        raise OutputError(
            f"contains files that would be lost ({', '.join(extra)[:200]}); move them, or choose a "
            "different output",
            path=path,
        )


def refuse_foreign(path: Path, *, mark: str, format: str | None = None) -> None:
    """Reject an output folder that already has files, but not the one that identifies ours.

    Args:
        mark: Name of that file.
        format: Format named in it, if several kinds of folders contain such a file.

    Raises:
        OutputError: If the folder has unrelated files.
    """
    if not exists(path):
        return
    found = f"no {mark}"
    if (path / mark).exists():
        record = None
        # A damaged folder may be overwritten; otherwise the stage rejects it.
        with contextlib.suppress(DataError):
            record = read_json(path / mark)
        kind = record.get("format") if isinstance(record, dict) else None
        if format is None or kind in (format, None):
            return
        found = f"its {mark} says '{kind}', not '{format}'"
    raise OutputError(
        f"contains unrelated files ({found}); choose a new or empty folder", path=path
    )
