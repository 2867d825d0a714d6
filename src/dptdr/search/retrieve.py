"""Exact in-memory search, for evaluation and checkpoint selection."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dptdr.errors import VectorsError
from dptdr.io.identical import own_passages, without_own
from dptdr.records import Hit, Passage, Query, Run
from dptdr.search.exact import exact_top_k


@runtime_checkable
class TextEncoder(Protocol):
    """Protocol for encoders used in search, such as ``dptdr.model.Encoder``."""

    @property
    def name(self) -> str:
        """Name of the task or backbone."""
        ...

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        ...

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the backbone."""
        ...

    @property
    def query_fingerprint(self) -> str:
        """Fingerprint of everything that affects query vectors."""
        ...

    @property
    def passage_fingerprint(self) -> str:
        """Fingerprint of everything that affects passage vectors."""
        ...

    def encode_queries(
        self, texts: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode queries, one vector each, in the given order."""
        ...

    def encode_passages(
        self, texts: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode passage contents, one vector each, in the given order."""
        ...


def weights_of(encoder: TextEncoder) -> str:
    """Return the dtype of an encoder's weights, float32 if unknown."""
    return str(getattr(encoder, "weights_dtype", "float32"))


def probe_of(encoder: TextEncoder) -> tuple[float, ...]:
    """Return the probe of an encoder's backbone, if any; see :mod:`dptdr.io.probe`."""
    return tuple(getattr(encoder, "backbone_probe", ()))


def retrieve(
    encoder: TextEncoder,
    *,
    queries: Sequence[Query],
    passages: Sequence[Passage],
    depth: int,
    keep_identical: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Encode queries and passages, and rank all passages exactly for each query.

    Args:
        passages: The passages; ties go to the earlier one.
        depth: Hits per query, at least 1; fewer if there are fewer passages.
        keep_identical: Let a query that is also a passage retrieve itself.

    Raises:
        ValueError: If ``depth`` is below 1.
        VectorsError: If an id is duplicated, or a vector contains NaN.
    """
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    _check_unique([query.id for query in queries], what="query")
    _check_unique([passage.id for passage in passages], what="passage")
    if not queries or not passages:
        return {query.id: [] for query in queries}
    total = len(queries) + len(passages)

    def report(offset: int) -> Callable[[int, int], None] | None:
        if on_progress is None:
            return None
        return lambda done, _: on_progress(offset + done, total)

    query_vectors = encoder.encode_queries([query.text for query in queries], on_progress=report(0))
    passage_vectors = encoder.encode_passages(
        [passage.content for passage in passages], on_progress=report(len(queries))
    )
    own = {} if keep_identical else own_passages(queries, passages)
    scores, rows = exact_top_k(query_vectors, passage_vectors, depth=depth + bool(own))
    run = {
        query.id: [
            Hit(passages[row].id, score)
            for row, score in zip(rows[index].tolist(), scores[index].tolist(), strict=True)
        ]
        for index, query in enumerate(queries)
    }
    return without_own(run, own, depth=depth)


def _check_unique(ids: Sequence[str], *, what: str) -> None:
    """Reject duplicate ids, which a run cannot distinguish."""
    if len(set(ids)) < len(ids):
        double = next(identifier for identifier, count in Counter(ids).items() if count > 1)
        raise VectorsError(
            f"duplicate {what} id '{double}'; check the data with `dptdr data inspect`"
        )
