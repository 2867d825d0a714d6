"""``python-code``: docstring summaries are queries, the code is the passage."""

import ast
import re
import textwrap
from collections.abc import Iterator

from dptdr.data.sample.assemble import SamplePair
from dptdr.data.sample.python_source import (
    Documentable,
    SourceFile,
    docstring_lines,
    documented,
    paragraphs,
    parse,
    standard_library,
)
from dptdr.data.sample.wording import as_query, cut

# Removed from newer Python versions, or not of general interest.
SKIPPED = frozenset(
    {
        "distutils",
        "lib2to3",
        "idlelib",
        "ensurepip",
        "turtledemo",
        "pydoc_data",
        "this",
        "antigravity",
    }
)
MAX_PASSAGE_CHARACTERS = 1500
MIN_BODY_CHARACTERS = 40

_EMPTY_BODY = re.compile(r"(pass|\.\.\.|return|raise NotImplementedError\b.*)\s*(#.*)?")


def code_sources() -> list[SourceFile]:
    """List the source files for ``python-code``."""
    return standard_library(skip=SKIPPED)


def code_pairs(files: list[SourceFile]) -> Iterator[SamplePair]:
    """Yield the docstring summary and the source of each suitable definition."""
    for file in files:
        tree = parse(file.path)
        if tree is None:
            continue
        lines = file.path.read_bytes().decode("utf-8", "replace").split("\n")
        found = list(documented(tree))
        hidden = {line for item in found for line in docstring_lines(item.node)}
        for item in found:
            query = as_query(paragraphs(item.docstring)[0])
            code = source_without_docstrings(item.node, lines=lines, hidden=hidden)
            if query is not None and code is not None:
                yield SamplePair(
                    id=f"{file.module}.{item.name}",
                    query=query,
                    passage=cut(code, characters=MAX_PASSAGE_CHARACTERS),
                    unit=file.module,
                )


def source_without_docstrings(
    node: Documentable, *, lines: list[str], hidden: set[int]
) -> str | None:
    """Strip all docstrings from the source of a definition.

    For a class, only the signatures of its methods are kept, because their bodies are separate
    passages.

    Returns:
        The code, or None if too little is left or a docstring shares a line with code.
    """
    skip = docstring_lines(node)
    if skip and (
        node.lineno in skip or not lines[skip[0] - 1].lstrip(" \tru").startswith(('"', "'"))
    ):
        return None
    dropped = set(hidden)
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                dropped.update(range(method.body[0].lineno, (method.end_lineno or 0) + 1))
                head = range(method.lineno + 1, method.body[0].lineno)
                dropped.update(n for n in head if lines[n - 1].lstrip().startswith("#"))
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    numbers = range(first, (node.end_lineno or node.lineno) + 1)
    kept = [lines[n - 1].rstrip() for n in numbers if n not in dropped and lines[n - 1].strip()]
    body = [
        lines[n - 1].strip()
        for n in range(node.body[0].lineno, numbers.stop)
        if n not in dropped and lines[n - 1].strip()
    ]
    if len("".join(body)) < MIN_BODY_CHARACTERS or all(map(_EMPTY_BODY.fullmatch, body)):
        return None
    return textwrap.dedent("\n".join(kept))
