"""Index types, their memory use, and automatic selection."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dptdr.errors import VectorsError
from dptdr.io.lines import describe
from dptdr.search.indexes.options import GRAPH_OPTIONS, LIST_OPTIONS

EXACT_LIMIT = 50_000
"""Maximum number of passages for which ``auto`` chooses exact search."""

_LINKS = 32
_LINK_BYTES = 4


class IndexType(NamedTuple):
    """A type of local index."""

    name: str
    description: str
    memory_bytes: Callable[[int, int], int]
    """Memory for searching in bytes, as a function of (passages, dim)."""
    rerank: int = 0
    """Candidates per hit to rescore on the full vectors; 0 for no rescoring."""
    options: tuple[str, ...] = ()
    """Supported options."""
    min_count: int = 1
    """Minimum number of passages."""
    advice: str = ""
    """How to raise the recall."""
    more_exact: str | None = None
    """Type that ``auto`` tries next if the recall is low; near-duplicates degrade graphs."""
    seeded: bool = False
    """Whether the seed has an effect."""
    automatic: bool = True
    """Whether ``auto`` may choose it by its memory; of those that fit, it takes the first."""


def _graph(count: int) -> int:
    # The bottom level has 2 * M links per passage; the upper levels add a few percent.
    return count * (2 * _LINKS * _LINK_BYTES + 16)


_GRAPH_ADVICE = "raise ef_search, ef_construction or M, or use ivf-sq"
_LIST_ADVICE = "raise nprobe, or use exact"

INDEX_TYPES: dict[str, IndexType] = {
    found.name: found
    for found in (
        IndexType(
            name="exact",
            description="exhaustive search, memory-mapped",
            memory_bytes=lambda n, d: 0,
            advice="use a different quantize setting, or none",
            # Chosen for small corpora, whatever the memory.
            automatic=False,
        ),
        IndexType(
            name="hnsw",
            description="graph over full vectors",
            memory_bytes=lambda n, d: 4 * n * d + _graph(n),
            options=GRAPH_OPTIONS,
            advice=_GRAPH_ADVICE,
            more_exact="ivf-sq",
        ),
        IndexType(
            name="hnsw-sq",
            description="graph over 8-bit vectors",
            memory_bytes=lambda n, d: n * d + _graph(n),
            rerank=2,
            options=GRAPH_OPTIONS,
            advice=_GRAPH_ADVICE,
            more_exact="ivf-sq",
        ),
        IndexType(
            name="ivf-sq",
            description="inverted lists of 8-bit vectors",
            memory_bytes=lambda n, d: n * (d + 8),
            rerank=2,
            options=LIST_OPTIONS,
            seeded=True,
            advice=_LIST_ADVICE,
            more_exact="exact",
        ),
        IndexType(
            name="ivf-pq",
            description="inverted lists of product codes",
            memory_bytes=lambda n, d: n * (pq_parts(d) + 8),
            rerank=10,
            options=LIST_OPTIONS,
            seeded=True,
            # Each code is one of 256 centroids, which need at least as many training passages.
            min_count=256,
            # rabitq has about the same size and recall, and is faster (results/search.md).
            automatic=False,
            advice=_LIST_ADVICE,
            more_exact="ivf-sq",
        ),
        IndexType(
            name="rabitq",
            description="inverted lists of 1-bit codes",
            memory_bytes=lambda n, d: n * (d // 8 + 16),
            rerank=10,
            options=LIST_OPTIONS,
            seeded=True,
            advice=_LIST_ADVICE,
            more_exact="exact",
        ),
    )
}
"""All local index types, those that ``auto`` may choose in the order of falling memory.

Types with ``rerank`` read full vectors of candidates from disk.
"""

_REMOVED = {"usearch": "0.1.0"}
"""Removed index types and the last version that reads them."""


class Choice(NamedTuple):
    """An index type and why it was chosen."""

    index_type: str
    reason: str
    recall: float | None = None
    """Recall@10 against exact search; None for an exact index."""
    warning: str | None = None
    """Advice if recall is too low."""


def pq_parts(dim: int) -> int:
    """Return the number of product-quantization subvectors: one per 8 dimensions or fewer."""
    return next(size for size in range(max(1, dim // 8), dim + 1) if dim % size == 0)


def choose_type(count: int, dim: int, *, memory_bytes: int) -> Choice:
    """Choose the index type for a corpus.

    Args:
        memory_bytes: Memory budget for the index; half of the free memory is reasonable.
    """
    if count <= EXACT_LIMIT:
        return Choice(
            "exact",
            f"exact search is fast for up to {EXACT_LIMIT:,} passages, and there are {count:,}",
        )
    too_large: list[str] = []
    candidates = [found for found in INDEX_TYPES.values() if found.automatic]
    for found in candidates:
        name, needed = found.name, found.memory_bytes(count, dim)
        if needed <= memory_bytes:
            reason = (
                f"{count:,} passages with {dim} dimensions need {_size(needed)} as {name}, out of "
                f"{_size(memory_bytes)} available"
            )
            if too_large:
                reason += f"; too large: {', '.join(too_large)}"
            return Choice(name, reason)
        too_large.append(f"{name} {_size(needed)}")
    return Choice(
        candidates[-1].name,
        f"the smallest type that auto chooses, but it exceeds the {_size(memory_bytes)} available "
        f"({', '.join(too_large)}): expect swapping, or distribute the corpus over machines",
    )


def find_type(name: object) -> IndexType:
    """Look up an index type by name.

    Raises:
        VectorsError: If the type is unknown or was removed.
    """
    if isinstance(name, str) and name in _REMOVED:
        raise VectorsError(
            f"index type '{name}' was removed; version {_REMOVED[name]} is the last that reads it, "
            "rebuild the index as hnsw-sq"
        )
    if not isinstance(name, str) or name not in INDEX_TYPES:
        known = ", ".join(INDEX_TYPES)
        shown = name if isinstance(name, str) else describe(name)
        raise VectorsError(f"expected one of the index types {known}, got '{shown}'")
    return INDEX_TYPES[name]


def check_size(index_type: IndexType, count: int, *, options: Mapping[str, int]) -> None:
    """Reject an index type or options that need more passages.

    Otherwise faiss would crash the process, or build an index with poor recall.

    Raises:
        VectorsError: If there are too few passages.
    """
    if count < index_type.min_count:
        raise VectorsError(
            f"expected at least {index_type.min_count} passages for an index of type "
            f"{index_type.name}, got {count:,}; use exact, which is fast at this size"
        )
    nlist = options.get("nlist")
    if nlist is not None and nlist > count:
        raise VectorsError(
            f"option nlist: expected at most {count:,}, the number of passages, got {nlist:,}"
        )
    if nlist is not None and options.get("nprobe", 0) > nlist:
        raise VectorsError(
            f"option nprobe: expected at most nlist = {nlist:,}, got {options['nprobe']:,}"
        )


def available_memory() -> int:
    """Return the available memory in bytes, respecting the container's limit."""
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
