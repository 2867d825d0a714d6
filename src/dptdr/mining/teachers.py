"""Teachers: scores of query and passage, higher for better answers.

Encoders come in as objects and cross-encoders through sentence-transformers, loaded when asked
for: this room itself needs no torch.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from dptdr.errors import NegativesError
from dptdr.mining.corpus import CorpusTable
from dptdr.mining.runtable import RunTable

_BATCH_PAIRS = 64


class Pair(NamedTuple):
    """What a teacher scores: a query, and a corpus row with its text."""

    query_id: str
    query: str
    row: int
    content: str


@runtime_checkable
class Teacher(Protocol):
    """Scores pairs deterministically."""

    @property
    def name(self) -> str:
        """Readable name."""
        ...

    @property
    def fingerprint(self) -> str:
        """A fingerprint of everything that the scores depend on."""
        ...

    @property
    def needs_texts(self) -> bool:
        """Whether pairs must hold the passages' texts."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one finite score for each pair."""
        ...


class FileTeacher:
    """Scores from a file in the layout of a run: query id, passage id and score of each pair.

    Attributes:
        needs_texts: Never.
    """

    needs_texts = False

    def __init__(self, table: RunTable, *, name: str, corpus: CorpusTable) -> None:
        self.name = name
        self.fingerprint = table.fingerprint
        self._table = table
        self._corpus = corpus

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score for each pair.

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
        """Return the vectors of some rows."""
        ...


class EncoderTeacher:
    """The mean score of one or several encoders (tasks on one or several backbones).

    Args:
        members: For each encoder, its query side, the vectors of the corpus, and what identifies
            both.

    Attributes:
        needs_texts: Never: passages come as vectors.
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
        """Return one score for each pair."""
        texts = list(dict.fromkeys(pair.query for pair in pairs))
        places = {text: place for place, text in enumerate(texts)}
        queries = np.array([places[pair.query] for pair in pairs], dtype=np.int64)
        rows = np.array([pair.row for pair in pairs], dtype=np.int64)
        total = np.zeros(len(pairs))
        for encode, vectors in self._members:
            left = np.asarray(encode(texts), dtype=np.float64)[queries]
            # Summed in double precision: the last bits must not depend on the batch.
            total += np.einsum("pd,pd->p", left, vectors.gather(rows).astype(np.float64))
        return [float(score) for score in total / len(self._members)]


class CrossEncoderTeacher:
    """A sentence-transformers cross-encoder with one output.

    Raises:
        NegativesError: If sentence-transformers is not installed, the model cannot be loaded, has
            more than one output, or its tokenizer is another model's.

    Attributes:
        needs_texts: Always.
    """

    needs_texts = True

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError:
            raise NegativesError(
                "a cross-encoder as teacher needs sentence-transformers; install "
                "dptdr[crossencoder]"
            ) from None
        try:
            self._model: Any = CrossEncoder(name, device=device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise NegativesError(
                f"teacher '{name}' cannot be loaded as a cross-encoder: {reason}"
            ) from None
        self.name = f"cross-encoder:{Path(name).name}"
        self._check(name)
        self.fingerprint = _weights_fingerprint(self._model)

    def _check(self, name: str) -> None:
        outputs = int(self._model.config.num_labels)
        if outputs != 1:
            raise NegativesError(
                f"teacher '{name}' has {outputs} outputs; expected a cross-encoder that gives one "
                "relevance score"
            )
        words = len(self._model.tokenizer)
        known = int(self._model.model.get_input_embeddings().weight.shape[0])
        if words > known:
            raise NegativesError(
                f"teacher '{name}' has a tokenizer of {words} tokens for a model that knows "
                f"{known}: it is another model's tokenizer; give the folder that was saved whole"
            )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score for each pair.

        Raises:
            NegativesError: If a score is not a number.
        """
        texts = [(pair.query, pair.content) for pair in pairs]
        values = self._model.predict(texts, batch_size=_BATCH_PAIRS, show_progress_bar=False)
        scores = [float(value) for value in values]
        for pair, score in zip(pairs, scores, strict=True):
            if not math.isfinite(score):
                raise NegativesError(
                    f"teacher {self.name} gives {score} for query '{pair.query_id}'; the model is "
                    "broken, or its number format too narrow"
                )
        return scores


def _weights_fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # As single precision, which holds every narrower format exactly.
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
