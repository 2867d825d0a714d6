"""Teachers score query-passage pairs; higher means more relevant.

This package needs no torch: encoders are passed in as objects, and cross-encoders are loaded
through sentence-transformers on demand.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from dptdr.errors import NegativesError, VectorsError
from dptdr.mining.corpus import CorpusTable
from dptdr.mining.runtable import RunTable
from dptdr.search.rerank import load_cross_encoder

_BATCH_PAIRS = 64


class Pair(NamedTuple):
    """A query and a corpus row with its text, to be scored by a teacher."""

    query_id: str
    query: str
    row: int
    content: str


@runtime_checkable
class Teacher(Protocol):
    """Scores pairs deterministically."""

    @property
    def name(self) -> str:
        """Display name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything the scores depend on."""
        ...

    @property
    def needs_texts(self) -> bool:
        """True if pairs must include passage texts."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one finite score per pair."""
        ...


class FileTeacher:
    """Scores from a run file: query id, passage id and score of each pair.

    Attributes:
        needs_texts: Always false.
    """

    needs_texts = False

    def __init__(self, table: RunTable, *, name: str, corpus: CorpusTable) -> None:
        self.name = name
        self.fingerprint = table.fingerprint
        self._table = table
        self._corpus = corpus

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair.

        Raises:
            NegativesError: If the file lacks a pair; names it.
        """
        known: dict[str, dict[int, float]] = {}
        scores: list[float] = []
        for pair in pairs:
            if pair.query_id not in known:
                ranking = self._table.ranking(pair.query_id, depth=2**31)
                known[pair.query_id] = (
                    dict(zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True))
                    if ranking is not None
                    else {}
                )
            score = known[pair.query_id].get(pair.row)
            if score is None:
                raise NegativesError(
                    f"teacher {self.name} has no score for query '{pair.query_id}' and passage "
                    f"'{self._corpus.ids[pair.row]}'; score all positives and all candidates"
                )
            scores.append(score)
        return scores


@runtime_checkable
class StoredVectors(Protocol):
    """Passage vectors by corpus row."""

    def gather(self, rows: Int64[np.ndarray, " rows"]) -> Float[np.ndarray, "rows dim"]:
        """Return the vectors in some rows."""
        ...


class EncoderTeacher:
    """The mean score of one or more encoders, with the same or different backbones.

    Args:
        members: For each encoder, its query side, the corpus vectors, and a fingerprint of both.

    Attributes:
        needs_texts: Always false: passages are given as vectors.
    """

    needs_texts = False

    def __init__(
        self,
        members: Sequence[tuple[Callable[[Sequence[str]], Any], StoredVectors, str]],
        *,
        name: str,
    ) -> None:
        self.name = name
        text = "\n".join(fingerprint for _, _, fingerprint in members)
        self.fingerprint = hashlib.sha256(text.encode("utf-8")).hexdigest()
        self._members = [(encode, vectors) for encode, vectors, _ in members]

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair."""
        texts = list(dict.fromkeys(pair.query for pair in pairs))
        places = {text: place for place, text in enumerate(texts)}
        queries = np.array([places[pair.query] for pair in pairs], dtype=np.int64)
        rows = np.array([pair.row for pair in pairs], dtype=np.int64)
        total = np.zeros(len(pairs))
        for encode, vectors in self._members:
            left = np.asarray(encode(texts), dtype=np.float64)[queries]
            # Sum in double precision, so that results do not depend on the batch.
            total += np.einsum("pd,pd->p", left, vectors.gather(rows).astype(np.float64))
        return [float(score) for score in total / len(self._members)]


class CrossEncoderTeacher:
    """A sentence-transformers cross-encoder with one output.

    Raises:
        NegativesError: If the model cannot be used; see
            :func:`dptdr.search.rerank.load_cross_encoder`.

    Attributes:
        needs_texts: Always true.
    """

    needs_texts = True

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        try:
            self._model: Any = load_cross_encoder(name, device=device)
        except VectorsError as error:
            raise NegativesError(f"teacher {error}") from None
        self.name = f"cross-encoder:{Path(name).name}"
        self.fingerprint = _weights_fingerprint(self._model)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair.

        Raises:
            NegativesError: If a score is not finite.
        """
        texts = [(pair.query, pair.content) for pair in pairs]
        values = self._model.predict(texts, batch_size=_BATCH_PAIRS, show_progress_bar=False)
        scores = [float(value) for value in values]
        for pair, score in zip(pairs, scores, strict=True):
            if not math.isfinite(score):
                raise NegativesError(
                    f"teacher {self.name}: expected finite scores, got {score} for query "
                    f"'{pair.query_id}'; the model is damaged, or its dtype overflows"
                )
        return scores


def _weights_fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # In single precision, which represents narrower formats exactly.
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
