"""Index types, their memory, and the choice for a corpus."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dptdr.errors import VectorsError
from dptdr.io.lines import describe
from dptdr.search.indexes.options import GRAPH_OPTIONS, LIST_OPTIONS

EXACT_LIMIT = 50_000
"""Passages up to which ``auto`` takes exact search."""

_LINKS = 32
_LINK_BYTES = 4


class IndexType(NamedTuple):
    """A type of local index."""

    name: str
    description: str
    memory_bytes: Callable[[int, int], int]
    """Memory while searching, from (passages, dim)."""
    rerank: int
    """Candidates for each hit that are scored again on the full vectors; 0 for none."""
    options: tuple[str, ...] = ()
    """Options that have an effect."""
    min_count: int = 1
    """Passages that it needs at least."""

    @property
    def seeded(self) -> bool:
        """Whether a seed has an effect."""
        return self.options == LIST_OPTIONS


def _graph(count: int) -> int:
    # The lowest level has twice the links; the levels above hold a few percent more.
    return count * (2 * _LINKS * _LINK_BYTES + 16)


_G, _L = GRAPH_OPTIONS, LIST_OPTIONS

INDEX_TYPES: dict[str, IndexType] = {
    found.name: found
    for found in (
        IndexType("exact", "every passage scored, memory-mapped", lambda n, d: 0, 0),
        IndexType("hnsw", "graph over full vectors", lambda n, d: 4 * n * d + _graph(n), 0, _G),
        IndexType("hnsw-sq", "graph over 8-bit vectors", lambda n, d: n * d + _graph(n), 2, _G),
        IndexType("ivf-sq", "lists of 8-bit vectors", lambda n, d: n * (d + 8), 2, _L),
        # Each code is one of 256 centres, which are trained on as many passages at least.
        IndexType(
            "ivf-pq", "lists of product codes", lambda n, d: n * (pq_parts(d) + 8), 10, _L, 256
        ),
        IndexType("rabitq", "lists of 1-bit codes", lambda n, d: n * (d // 8 + 16), 10, _L),
    )
}
"""All local types. Those with ``rerank`` read the best candidates' full vectors from disk."""

MORE_EXACT = {
    "hnsw": "ivf-sq",
    "hnsw-sq": "ivf-sq",
    "ivf-sq": "exact",
    "ivf-pq": "ivf-sq",
    "rabitq": "exact",
}
"""What ``auto`` takes instead of a type that finds too little; near-copies are bad for graphs."""

_REMOVED = {"usearch": "0.1.0"}
"""Index types of earlier versions, with the last version that reads them."""


class Choice(NamedTuple):
    """An index type and why it was chosen."""

    index_type: str
    reason: str
    recall: float | None = None
    """Recall@10 against exact search; None for exact search."""
    warning: str | None = None
    """What to do about a recall that is too low."""


def pq_parts(dim: int) -> int:
    """Return the number of subvectors of a product code, one byte for at most 8 numbers."""
    return next(size for size in range(max(1, dim // 8), dim + 1) if dim % size == 0)


def choose_type(count: int, dim: int, *, memory_bytes: int) -> Choice:
    """Return the index type that suits a corpus, and why.

    Args:
        memory_bytes: Memory that an index may take; half of what is free is a good measure.
    """
    if count <= EXACT_LIMIT:
        return Choice(
            "exact",
            f"{count:,} passages are at most {EXACT_LIMIT:,}: scoring all of them is fast and "
            "loses nothing",
        )
    too_large: list[str] = []
    for name in ("hnsw", "hnsw-sq", "ivf-sq", "rabitq"):
        needed = INDEX_TYPES[name].memory_bytes(count, dim)
        if needed <= memory_bytes:
            reason = (
                f"{count:,} passages of {dim} numbers need {_size(needed)} as {name}, of "
                f"{_size(memory_bytes)} that may be used"
            )
            if too_large:
                reason += f"; too large: {', '.join(too_large)}"
            return Choice(name, reason)
        too_large.append(f"{name} {_size(needed)}")
    return Choice(
        "rabitq",
        f"the smallest type; it needs more than the {_size(memory_bytes)} that may be used "
        f"({', '.join(too_large)}): expect the system to page, or spread the corpus over machines",
    )


def find_type(name: object) -> IndexType:
    """Return the index type of a name.

    Raises:
        VectorsError: If there is no such type, or it was removed.
    """
    if isinstance(name, str) and name in _REMOVED:
        raise VectorsError(
            f"index type '{name}' was removed; version {_REMOVED[name]} is the last that reads it, "
            "build the index again as hnsw-sq"
        )
    if not isinstance(name, str) or name not in INDEX_TYPES:
        known = ", ".join(INDEX_TYPES)
        shown = name if isinstance(name, str) else describe(name)
        raise VectorsError(f"expected an index type out of {known}, got '{shown}'")
    return INDEX_TYPES[name]


def check_size(index_type: IndexType, count: int, *, options: Mapping[str, int]) -> None:
    """Refuse an index type or options that so few passages cannot fill.

    Native code would end the process, or give an index that finds little.

    Raises:
        VectorsError: If there are too few passages.
    """
    if count < index_type.min_count:
        raise VectorsError(
            f"expected at least {index_type.min_count} passages for an index of type "
            f"{index_type.name}, got {count:,}; take exact, which is fast for so few"
        )
    nlist = options.get("nlist")
    if nlist is not None and nlist > count:
        raise VectorsError(
            f"option nlist: expected at most the number of passages, {count:,}, got {nlist:,}"
        )
    if nlist is not None and options.get("nprobe", 0) > nlist:
        raise VectorsError(
            f"option nprobe: expected at most nlist, {nlist:,}, got {options['nprobe']:,}"
        )


def available_memory() -> int:
    """Return the available memory in bytes, within the container's limit."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdecimal():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
