"""Options of indexes: their types, bounds and former names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from dptdr.errors import VectorsError
from dptdr.io.lines import describe

Options: TypeAlias = Mapping[str, int]
"""Options that differ from the defaults, such as ``{"M": 48, "ef_search": 200}``."""


class Option(NamedTuple):
    """An option with its bounds."""

    description: str
    min: int
    max: int


OPTIONS: dict[str, Option] = {
    # faiss crashes at M below 2; the upper bounds keep a damaged manifest from hanging a search.
    "M": Option("links of a passage in a graph", 2, 512),
    "ef_construction": Option("candidates looked at while building a graph", 1, 100_000),
    "ef_search": Option("candidates looked at while searching a graph", 1, 100_000),
    "nlist": Option("inverted lists", 1, 16_777_216),
    "nprobe": Option("lists searched for a query", 1, 16_777_216),
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
"""Names up to version 0.1.0."""

PGVECTOR_BOUNDS = {
    "M": Option("links of a passage in a graph", 2, 100),
    "ef_construction": Option("candidates looked at while building a graph", 4, 1000),
}
QDRANT_BOUNDS = {
    "M": Option("links of a passage in a graph", 2, 512),
    "ef_construction": Option("candidates looked at while building a graph", 4, 100_000),
}


def check_options(
    options: Mapping[str, Any],
    *,
    index_type: str,
    accepted: Sequence[str],
    bounds: Mapping[str, Option] = OPTIONS,
) -> dict[str, int]:
    """Return options by their current names.

    Returns:
        The options; all of them have an effect.

    Raises:
        VectorsError: If an option has no effect, is given twice, or is out of bounds.
    """
    found: dict[str, int] = {}
    for given, value in options.items():
        name = FORMER_NAMES.get(given, given)
        if name in found:
            raise VectorsError(f"option {name} is given twice, also as {given}; give it once")
        if name not in accepted:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no options"
            raise VectorsError(
                f"option {given} has no effect on an index of type {index_type}, which {takes}; "
                "leave it out or choose another index type"
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
    """Return the options of an old manifest that had an effect.

    Returns:
        Those that are accepted and differ from 0, which meant the default.
    """
    return {
        FORMER_NAMES.get(name, name): value
        for name, value in options.items()
        if FORMER_NAMES.get(name, name) in accepted and value != 0
    }
