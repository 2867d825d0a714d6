"""``python-api``: docstring summaries are queries, the rest of the docstrings are passages."""

import ast
import re
from collections.abc import Iterator

from dptdr.data.sample.assemble import SamplePair
from dptdr.data.sample.python_source import (
    SourceFile,
    documented,
    package_sources,
    paragraphs,
    parse,
)
from dptdr.data.sample.wording import as_query, cut, is_signature

PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": (),
    "scipy": (),
    "matplotlib": (),
    # Reading all of torch would dominate the time; these are the commonly read parts.
    "torch": (
        "autograd",
        "cuda",
        "distributions",
        "fft",
        "func",
        "fx",
        "linalg",
        "nn",
        "optim",
        "profiler",
        "sparse",
        "special",
        "utils",
    ),
}
"""Dependencies of dptdr with the subpackages to read; empty for all."""

SKIPPED_FOLDERS = frozenset(
    {"_external", "_vendored", "_lib", "externals", "f2py", "distutils", "typing", "extern"}
)
MAX_PASSAGE_CHARACTERS = 1500
MIN_PASSAGE_CHARACTERS = 120
MIN_PASSAGE_WORDS = 15

_ADDERS = frozenset({"add_newdoc", "add_docstr", "_add_docstr"})
_UNDERLINE = re.compile(r"^[ \t]*[-=~^\"*]{3,}[ \t]*\n", re.MULTILINE)
# `{input}` is a template only on a line of its own; elsewhere it is a formula.
_TEMPLATE = re.compile(r"%\([\w:.]+\)s|^[ \t]*\{\w+\}[ \t]*$", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z]{2,}")


def api_sources() -> list[SourceFile]:
    """List the source files for ``python-api``."""
    files: list[SourceFile] = []
    for package, only in PACKAGES.items():
        files += [
            file
            for file in package_sources(package, only=only)
            if not SKIPPED_FOLDERS.intersection(file.module.split("."))
        ]
    return files


def api_pairs(files: list[SourceFile]) -> Iterator[SamplePair]:
    """Yield the summary and the rest of each public definition's documentation."""
    for file in files:
        tree = parse(file.path)
        if tree is None:
            continue
        docs = [(item.name, item.docstring) for item in documented(tree)]
        for name, docstring in [*docs, *added_docs(tree)]:
            if any(part.startswith("_") for part in name.split(".")):
                continue
            pair = split_documentation(docstring)
            if pair is not None:
                yield SamplePair(
                    id=f"{file.module}.{name}", query=pair[0], passage=pair[1], unit=file.module
                )


def added_docs(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield documentation attached by a call, as is common for C functions."""
    for statement in tree.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
            continue
        call = statement.value
        called = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        called = call.func.id if isinstance(call.func, ast.Name) else called
        if called not in _ADDERS or not call.args:
            continue
        texts = [
            node.value
            for argument in call.args
            for node in ast.walk(argument)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        if texts:
            # add_docstr(torch.abs, doc), add_newdoc(name, doc) or add_newdoc(module, name, doc)
            named = texts[:-1] if len(call.args) == 2 else texts[1:-1]
            target = [call.args[0].attr] if isinstance(call.args[0], ast.Attribute) else named
            yield ".".join(part for part in target if part.isidentifier()) or "it", texts[-1]


def split_documentation(docstring: str) -> tuple[str, str] | None:
    """Split a docstring into summary and rest; None if either is too short."""
    parts = paragraphs(docstring)
    while parts and is_signature(parts[0]):
        parts.pop(0)
    query = as_query(parts[0]) if len(parts) > 1 else None
    if query is None:
        return None
    rest = _TEMPLATE.sub("", "\n".join(parts[1:]))
    rest = _UNDERLINE.sub("", rest.replace("{{", "{").replace("}}", "}"))
    rest = "\n".join(line for line in rest.split("\n") if line.strip())
    passage = cut(rest, characters=MAX_PASSAGE_CHARACTERS)
    enough = len(passage) >= MIN_PASSAGE_CHARACTERS
    return (query, passage) if enough and len(_WORD.findall(passage)) >= MIN_PASSAGE_WORDS else None
