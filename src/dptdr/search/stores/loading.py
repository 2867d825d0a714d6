"""Load a vector folder into a database."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from dptdr.errors import VectorsError, WrongPrompt
from dptdr.io.beir import document_record
from dptdr.records import Document
from dptdr.search.index import SearchResults, check_query_vectors
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import Origin


@runtime_checkable
class Target(Protocol):
    """A collection being loaded while another one serves."""

    def begin(self) -> int:
        """Find or create the collection; return the number of rows already loaded."""
        ...

    def send(
        self,
        documents: Sequence[Document],
        vectors: Float32[np.ndarray, "rows dim"],
        *,
        loaded: int,
    ) -> None:
        """Load rows and record the count; idempotent."""
        ...

    def activate(self) -> None:
        """Make this the serving collection."""
        ...


def load_folder(
    folder: VectorFolder,
    target: Target,
    *,
    batch_rows: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Load a vector folder, resuming an interrupted load.

    Args:
        batch_rows: Passages per request.

    Raises:
        VectorsError: If the vectors are damaged or contain NaN, or the database is unreachable.
    """
    folder.verify()
    loaded = target.begin()
    for start, block in folder.blocks(batch_rows):
        end = start + len(block)
        if end > loaded:
            vectors = np.asarray(block, dtype=np.float32)
            if not np.isfinite(vectors).all():
                raise VectorsError(
                    f"{folder.path}: vectors in rows {start} to {end} contain NaN or infinity; "
                    "re-encode"
                )
            target.send(folder.documents(range(start, end)), vectors, loaded=end)
        if on_progress is not None:
            on_progress(end, folder.count)
    target.activate()


def check_upsert(
    vectors: Float[np.ndarray, "passages dim"],
    *,
    documents: Sequence[Document],
    origin: Origin,
    passage_fingerprint: str,
    name: str,
) -> Float32[np.ndarray, "passages dim"]:
    """Validate vectors to upsert and return them as float32.

    Args:
        origin: Origin of the vectors in the index.

    Raises:
        WrongPrompt: If the indexed vectors come from a different prompt or backbone.
        VectorsError: If the count or dimension is wrong, an id is duplicated, a vector contains
            NaN, or a document is not valid Unicode.
    """
    if passage_fingerprint != origin.passage_fingerprint:
        raise WrongPrompt(
            f"index '{name}': expected passage fingerprint {origin.passage_fingerprint}, got "
            f"{passage_fingerprint}; encode with the task that made the index, or load a new "
            "collection"
        )
    if len(documents) != len(vectors):
        raise VectorsError(f"expected {len(documents)} vectors, got {len(vectors)}")
    ids = [document.passage.id for document in documents]
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise VectorsError(f"duplicate passage id '{twice[0]}'; pass each passage once")
    for document in documents:
        try:
            json.dumps(document_record(document), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise VectorsError(
                f"passage {document.passage.id!r}: expected valid Unicode, got a lone surrogate"
            ) from None
    checked: np.ndarray = check_query_vectors(vectors, dim=origin.dim, depth=1)
    return checked


def check_ids(ids: object) -> None:
    """Reject a single id, whose letters would be taken for ids."""
    if isinstance(ids, str):
        raise VectorsError(f"ids: expected a list, got the text '{ids[:60]}'; put it in a list")


def check_reloaded(opened: Origin, now: Origin, *, name: str) -> None:
    """Check that a collection loaded again has vectors of the same prompt and backbone.

    Raises:
        WrongPrompt: If it does not.
    """
    if (opened.passage_fingerprint, opened.dim) != (now.passage_fingerprint, now.dim):
        raise WrongPrompt(
            f"index '{name}': loaded again since it was opened, with vectors of '{now.encoder}' "
            f"(passage fingerprint {now.passage_fingerprint}) instead of '{opened.encoder}' "
            f"({opened.passage_fingerprint}); open it again with that encoder"
        )


def search_results(rankings: Sequence[Sequence[tuple[str, float]]]) -> SearchResults:
    """Combine the rankings of several queries, best first, into one result."""
    width = max(map(len, rankings), default=0)
    scores = np.full((len(rankings), width), -np.inf, dtype=np.float32)
    for row, ranking in enumerate(rankings):
        scores[row, : len(ranking)] = [score for _, score in ranking]
    return SearchResults(scores, [[name for name, _ in ranking] for ranking in rankings])


def in_order(documents: Iterable[Document], ids: Sequence[str], *, name: str) -> list[Document]:
    """Return documents in the order of the ids.

    Raises:
        VectorsError: If an id is missing.
    """
    known = {document.passage.id: document for document in documents}
    for identifier in ids:
        if identifier not in known:
            raise VectorsError(f"index '{name}': no passage with id '{identifier}'")
    return [known[identifier] for identifier in ids]
