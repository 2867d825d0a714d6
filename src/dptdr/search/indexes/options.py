"""Index options: types, bounds and former names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from dptdr.errors import VectorsError
from dptdr.io.lines import describe

Options: TypeAlias = Mapping[str, int]
"""Options that override the defaults, such as ``{"M": 48, "ef_search": 200}``."""


class Option(NamedTuple):
    """An option with its bounds."""

    description: str
    min: int
    max: int


OPTIONS: dict[str, Option] = {
    # faiss crashes if M is below 2; the upper bounds stop a damaged manifest from hanging a search.
    "M": Option("links per passage in the graph", 2, 512),
    "ef_construction": Option("candidate list size while building the graph", 1, 100_000),
    "ef_search": Option("candidate list size while searching the graph", 1, 100_000),
    "nlist": Option("inverted lists", 1, 16_777_216),
    "nprobe": Option("inverted lists probed per query", 1, 16_777_216),
}
GRAPH_OPTIONS = ("M", "ef_construction", "ef_search")
LIST_OPTIONS = ("nlist", "nprobe")

FORMER_NAMES = {
    "links": "M",
    "build_width": "ef_construction",
    "search_width": "ef_search",
    "lists": "nlist",
    "probes": "nprobe",
}
"""Option names up to version 0.1.0."""

PGVECTOR_BOUNDS = {
    "M": Option("links per passage in the graph", 2, 100),
    "ef_construction": Option("candidate list size while building the graph", 4, 1000),
}
QDRANT_BOUNDS = {
    "M": Option("links per passage in the graph", 2, 512),
    "ef_construction": Option("candidate list size while building the graph", 4, 100_000),
}


def check_options(
    options: Mapping[str, Any],
    *,
    index_type: str,
    accepted: Sequence[str],
    bounds: Mapping[str, Option] = OPTIONS,
) -> dict[str, int]:
    """Validate options and return them under their current names.

    Raises:
        VectorsError: If an option has no effect, is given twice, or is out of bounds.
    """
    found: dict[str, int] = {}
    for given, value in options.items():
        name = FORMER_NAMES.get(given, given)
        if name in found:
            raise VectorsError(f"option {name} is given twice, also as {given}; specify it once")
        if name not in accepted:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no options"
            raise VectorsError(
                f"option {given} has no effect on an index of type {index_type}, which {takes}; "
                "omit it or choose another index type"
            )
        _, least, most = bounds[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            shown = value if isinstance(value, int) else describe(value)
            raise VectorsError(
                f"option {name}: expected a number from {least} to {most:,}, got {shown}"
            )
        found[name] = value
    return found


def options_of_version_1(options: Mapping[str, Any], *, accepted: Sequence[str]) -> dict[str, Any]:
    """Return the effective options of an old manifest, where 0 meant the default."""
    return {
        FORMER_NAMES.get(name, name): value
        for name, value in options.items()
        if FORMER_NAMES.get(name, name) in accepted and value != 0
    }
