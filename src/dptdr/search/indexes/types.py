"""The kinds of index by name, what each needs in memory, and which one fits a corpus."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dptdr.errors import VectorsError

EXACT_LIMIT = 50_000
"""Passages up to which ``auto`` takes exact search."""

_LINKS = 32
_LINK_BYTES = 4


class Kind(NamedTuple):
    """A kind of index that lives in a folder of this machine."""

    name: str
    description: str
    memory_bytes: Callable[[int, int], int]
    """Memory while searching, from (passages, dim)."""
    rerank: int
    """Candidates for each hit that are scored again on the full vectors; 0 for none."""


def _graph(count: int) -> int:
    # The lowest level has twice the links; the levels above hold a few percent more.
    return count * (2 * _LINKS * _LINK_BYTES + 16)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("exact", "every passage scored, memory-mapped", lambda n, d: 0, 0),
        Kind("hnsw", "graph over full vectors", lambda n, d: 4 * n * d + _graph(n), 0),
        Kind("hnsw-sq", "graph over 8-bit vectors", lambda n, d: n * d + _graph(n), 2),
        Kind("ivf-sq", "lists of 8-bit vectors", lambda n, d: n * (d + 8), 2),
        Kind("ivf-pq", "lists of product codes", lambda n, d: n * (pq_parts(d) + 8), 10),
        Kind("rabitq", "lists of 1-bit codes", lambda n, d: n * (d // 8 + 16), 10),
    )
}
"""All local kinds. Those with ``rerank`` read the best candidates' full vectors from disk."""


_REMOVED = {"usearch": "0.1.0"}
"""Index types of earlier versions, with the last version that reads them."""


class Choice(NamedTuple):
    """A kind with the reason for it."""

    kind: str
    reason: str


def pq_parts(dim: int) -> int:
    """Return into how many parts a product code cuts a vector: one byte for 8 numbers or less."""
    return next(size for size in range(max(1, dim // 8), dim + 1) if dim % size == 0)


def choose_kind(count: int, dim: int, *, memory_bytes: int) -> Choice:
    """Return the kind that suits a corpus, and why.

    Args:
        count: Passages.
        dim: Numbers in a vector.
        memory_bytes: Memory that an index may take; half of what is free is a good measure.

    Returns:
        The kind and the reason in words.
    """
    if count <= EXACT_LIMIT:
        return Choice(
            "exact",
            f"{count:,} passages are at most {EXACT_LIMIT:,}: scoring all of them is fast and "
            "loses nothing",
        )
    too_large: list[str] = []
    for name in ("hnsw", "hnsw-sq", "ivf-sq", "rabitq"):
        needed = KINDS[name].memory_bytes(count, dim)
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
        f"the smallest kind; it needs more than the {_size(memory_bytes)} that may be used "
        f"({', '.join(too_large)}): expect the system to page, or spread the corpus over machines",
    )


def check_kind(name: str) -> Kind:
    """Return the kind of a name.

    Args:
        name: What the user wrote.

    Returns:
        The kind.

    Raises:
        VectorsError: If there is no such kind.
    """
    if name in _REMOVED:
        raise VectorsError(
            f"index type '{name}' was removed; version {_REMOVED[name]} is the last that reads it, "
            "build the index again as hnsw-sq"
        )
    if name not in KINDS:
        raise VectorsError(f"expected a kind of index out of {', '.join(KINDS)}, got '{name}'")
    return KINDS[name]


def available_memory() -> int:
    """Return the bytes of memory that a new process can take, within the container's limit."""
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
