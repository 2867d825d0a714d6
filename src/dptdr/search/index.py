"""The protocol of all indexes, and searching texts with them."""

from collections.abc import Callable, Sequence
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
    """The hits of some queries, best first."""

    scores: Float[np.ndarray, "queries depth"]
    """Dot products as float32; minus infinity where a query has fewer hits than the widest."""
    ids: list[list[str]]
    """Passage ids; a query with few hits has a short list."""


@runtime_checkable
class Index(Protocol):
    """A searchable collection of passages with their vectors."""

    @property
    def index_type(self) -> str:
        """Name of the type, such as ``hnsw`` or ``postgres``."""
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
        """Return the passages with the highest dot product that pass all filters.

        Args:
            filters: Conditions on metadata; all must hold.

        Raises:
            ValueError: If ``depth`` is below 1.
            VectorsError: If a vector has another dimension or holds NaN.
        """
        ...

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return passages with their texts, in the given order."""
        ...


def check_encoder(origin: Origin, encoder: TextEncoder, *, where: Path | str) -> None:
    """Refuse to search vectors with an encoder that would encode passages differently.

    A query-only task passes on the bare backbone's vectors: its passages are encoded by that.

    Raises:
        WrongPrompt: If the vectors were made by another prompt or backbone.
    """
    if origin.passage_fingerprint == encoder.passage_fingerprint:
        if same_probe(origin.probe, probe_of(encoder)):
            return
        raise WrongPrompt(
            f"{where}: its vectors were made by a backbone with the weights of '{encoder.name}' "
            "that encodes otherwise; was the backbone's config.json changed?"
        )
    if origin.backbone_fingerprint == encoder.backbone_fingerprint:
        what = "another prompt on the same backbone"
    else:
        what = (
            f"another backbone ({origin.backbone_fingerprint}, not {encoder.backbone_fingerprint})"
        )
    raise WrongPrompt(
        f"{where}: its vectors were made by '{origin.encoder}' with passage fingerprint "
        f"{origin.passage_fingerprint}, but '{encoder.name}' makes {encoder.passage_fingerprint}: "
        f"{what}. Search with the task that made them, or renew the index with "
        "`dptdr index VECTORS --refresh INDEX --task TASK --data DATA`"
    )


def search_queries(
    index: Index,
    encoder: TextEncoder,
    *,
    queries: Sequence[Query],
    depth: int,
    filters: Sequence[Filter] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Encode queries and search them in an index.

    Args:
        encoder: The encoder that made them, or a query-only task on it.
        depth: Hits for each query, at least 1.
        filters: Conditions on metadata; all must hold.

    Raises:
        WrongPrompt: If the vectors were made by another prompt or backbone.
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
                raise VectorsError(f"duplicate query id '{query.id}'")
            run[query.id] = [Hit(*pair) for pair in zip(ids, scores, strict=False)]
        if on_progress is not None:
            on_progress(start + len(some), len(queries))
    return run


def check_query_vectors(vectors: Any, *, dim: int, depth: int) -> Float[np.ndarray, "queries dim"]:
    """Return query vectors as contiguous float32.

    Args:
        dim: Numbers in a vector of the index.

    Raises:
        ValueError: If ``depth`` is below 1.
        VectorsError: If they have another dimension or hold NaN or infinity.
    """
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise VectorsError(
            f"expected real query vectors as rows of a table, got {given.dtype} of shape "
            f"{given.shape}"
        )
    if given.shape[1] != dim:
        raise VectorsError(
            f"expected query vectors of {dim} numbers, got {given.shape[1]}; search with the "
            "encoder that made the index"
        )
    with np.errstate(over="ignore"):
        queries = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise VectorsError(
            f"expected finite numbers in single precision, query vector {row} holds NaN or infinity"
        )
    return queries
