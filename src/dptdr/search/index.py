"""The protocol shared by all indexes, and text search on top of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dptdr.errors import VectorsError, WrongPrompt
from dptdr.io.probe import same_probe
from dptdr.records import Document, Hit, Query, Run
from dptdr.search.retrieve import TextEncoder, probe_of
from dptdr.search.vectors.documents import Filter
from dptdr.search.vectors.manifest import Origin

_QUERIES_AT_ONCE = 1024


class SearchResults(NamedTuple):
    """Hits for a batch of queries, best first."""

    scores: Float[np.ndarray, "queries depth"]
    """Dot products as float32, padded with -inf for queries with fewer hits."""
    ids: list[list[str]]
    """Passage ids, unpadded."""


@runtime_checkable
class Index(Protocol):
    """A searchable collection of passages with their vectors."""

    @property
    def index_type(self) -> str:
        """Index type, such as ``hnsw`` or ``postgres``."""
        ...

    @property
    def count(self) -> int:
        """Number of passages."""
        ...

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        ...

    @property
    def origin(self) -> Origin:
        """Origin of the vectors."""
        ...

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> SearchResults:
        """Return the passages with the highest dot products that match all filters.

        Raises:
            ValueError: If ``depth`` is below 1.
            VectorsError: If a vector has the wrong dimension or contains NaN.
        """
        ...

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Look up passages by id, in the given order."""
        ...


def check_encoder(origin: Origin, encoder: TextEncoder, *, where: Path | str) -> None:
    """Reject an encoder that would encode the indexed passages differently.

    A query-only task may search the bare backbone's vectors, because it encodes passages with it.

    Raises:
        WrongPrompt: If the vectors come from a different prompt or backbone.
    """
    if origin.passage_fingerprint == encoder.passage_fingerprint:
        if same_probe(origin.probe, probe_of(encoder)):
            return
        raise WrongPrompt(
            f"{where}: expected the backbone that made it, got '{encoder.name}', which has "
            "the same weights but encodes differently; check whether config.json was changed"
        )
    if origin.backbone_fingerprint == encoder.backbone_fingerprint:
        what = "a different prompt on the same backbone"
    else:
        what = (
            f"a different backbone ({origin.backbone_fingerprint}, not "
            f"{encoder.backbone_fingerprint})"
        )
    raise WrongPrompt(
        f"{where}: expected the passage fingerprint {origin.passage_fingerprint} of its encoder "
        f"'{origin.encoder}', got {encoder.passage_fingerprint} of '{encoder.name}': "
        f"{what}. Search with the original task, or refresh the index with "
        "`dptdr index VECTORS --refresh INDEX --task TASK --data DATA`"
    )


def search_queries(
    index: Index,
    encoder: TextEncoder,
    *,
    queries: Sequence[Query],
    depth: int,
    filters: Sequence[Filter] = (),
) -> Run:
    """Encode queries and search an index with them.

    Args:
        encoder: The encoder that made the vectors, or a query-only task on it.
        depth: Hits per query, at least 1.

    Raises:
        WrongPrompt: If the vectors come from a different prompt or backbone.
        VectorsError: If two queries have the same id.
    """
    check_encoder(index.origin, encoder, where=f"{index.index_type} index")
    run: Run = {}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        vectors = encoder.encode_queries([query.text for query in some])
        found = index.search(vectors, depth=depth, filters=filters)
        for query, ids, scores in zip(some, found.ids, found.scores.tolist(), strict=True):
            if query.id in run:
                raise VectorsError(f"duplicate query id '{query.id}'; pass each query once")
            run[query.id] = [Hit(*pair) for pair in zip(ids, scores, strict=False)]
    return run


def check_query_vectors(vectors: Any, *, dim: int, depth: int) -> Float[np.ndarray, "queries dim"]:
    """Validate query vectors and return them as contiguous float32.

    Raises:
        ValueError: If ``depth`` is below 1.
        VectorsError: If they have the wrong dimension or contain NaN or infinity.
    """
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise VectorsError(
            f"expected a 2-D array of real query vectors, got {given.dtype} of shape {given.shape}"
        )
    if given.shape[1] != dim:
        raise VectorsError(
            f"expected query vectors with {dim} dimensions, got {given.shape[1]}; search with the "
            "encoder that made the index"
        )
    with np.errstate(over="ignore"):
        queries = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise VectorsError(f"query vector {row} contains NaN or infinity in single precision")
    return queries
