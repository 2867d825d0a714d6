"""Find local Python source files and their docstrings, without importing or running them."""

import ast
import importlib.util
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from dptdr.errors import DataError

Documentable: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_HOLDERS = (ast.stmt, ast.ExceptHandler, ast.match_case)
TEST_FOLDERS = frozenset({"test", "tests", "testing", "_testing", "idle_test"})


class SourceFile(NamedTuple):
    """A Python file and its import name."""

    module: str
    path: Path


class Documented(NamedTuple):
    """A function, method or class with its qualified name and cleaned docstring."""

    name: str
    node: Documentable
    docstring: str


def standard_library(*, skip: frozenset[str]) -> list[SourceFile]:
    """List the source files of the standard library by path, excluding tests.

    Raises:
        DataError: If the sources are not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _files_below(root, prefix=())
    kept = [file for file in files if file.module.split(".")[0] not in skip]
    if not kept:
        raise DataError(
            "no Python sources of the standard library; use a Python installation that includes "
            "its sources",
            path=root,
        )
    return kept


def package_sources(package: str, *, only: Sequence[str] = ()) -> list[SourceFile]:
    """List the source files of an installed package by path, excluding tests.

    Args:
        package: Name of a top-level package, which is located but not imported.
        only: Subpackages to include (such as ``nn`` or ``utils/data``) besides top-level modules;
            empty for all.

    Raises:
        DataError: If the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package '{package}' is not installed; install dptdr with pip")
    root = Path(next(iter(spec.submodule_search_locations)))
    if not only:
        return _files_below(root, prefix=(package,))
    files = [
        SourceFile(_module_name((package,), Path(file.name)), file)
        for file in sorted(root.glob("*.py"))
    ]
    for name in only:
        files += _files_below(root / name, prefix=(package, *name.split("/")))
    return files


def parse(path: Path) -> ast.Module | None:
    """Parse a source file; ``None`` if this Python version cannot."""
    try:
        with warnings.catch_warnings():
            # Ignore warnings about invalid escapes in third-party files.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def documented(tree: ast.Module) -> Iterator[Documented]:
    """Yield all functions, methods and classes with a docstring, in source order."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        outer, node = pending.pop()
        name = outer
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}.{node.name}" if outer else node.name
            docstring = ast.get_docstring(node)
            if docstring:
                yield Documented(name, node, docstring)
        # Expressions contain no definitions; skipping them halves the time.
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, _HOLDERS)]
        pending += [(name, child) for child in reversed(inner)]


def docstring_lines(node: Documentable) -> range:
    """Return the line numbers, from 1, of a definition's docstring."""
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return range(first.lineno, (first.end_lineno or first.lineno) + 1)
    return range(0)


def paragraphs(docstring: str) -> list[str]:
    """Split a docstring into paragraphs."""
    parts: list[list[str]] = [[]]
    for line in inspect.cleandoc(docstring).split("\n"):
        if line.strip():
            parts[-1].append(line.rstrip())
        elif parts[-1]:
            parts.append([])
    return ["\n".join(part) for part in parts if part]


def _files_below(root: Path, *, prefix: tuple[str, ...]) -> list[SourceFile]:
    unwanted = TEST_FOLDERS | {"site-packages", "dist-packages", "_bundled", "__pycache__"}
    found: list[SourceFile] = []
    for name, folders, files in os.walk(root):
        # Prune while walking: site-packages may be inside the standard library.
        folders[:] = [folder for folder in folders if folder not in unwanted]
        paths = [Path(name) / file for file in files if file.endswith(".py")]
        found += [SourceFile(_module_name(prefix, path.relative_to(root)), path) for path in paths]
    return sorted(found)


def _module_name(prefix: tuple[str, ...], relative: Path) -> str:
    parts = [*prefix, *relative.with_suffix("").parts]
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)
