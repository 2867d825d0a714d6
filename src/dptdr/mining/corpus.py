"""What mining needs to know of a corpus: ids, which texts are the same, how long they are.

The texts themselves stay on disk. A passage costs its id's bytes and 36 more.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt64

from dptdr.errors import NegativesError
from dptdr.io.ids import IdTable
from dptdr.records import Passage


def normalised(text: str) -> str:
    """Return a text without what does not make it another text: case, spacing, Unicode forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a text that is the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stable_hashes(texts: Iterable[str]) -> UInt64[np.ndarray, " texts"]:
    """Return :func:`stable_hash` of each text."""
    digests = [hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


class CorpusTable:
    """Rows of a corpus by id, with a hash of each normalised text.

    Two passages are the same text where their texts (not their titles) are equal after
    :func:`normalised`; a passage without text goes by its title. Rows and texts are found by 64-bit
    hashes: for ten million passages, one in 300,000 corpora has two that are taken for one.
    """

    def __init__(
        self,
        ids: IdTable,
        *,
        id_hashes: UInt64[np.ndarray, " passages"],
        text_hashes: UInt64[np.ndarray, " passages"],
        characters: Int32[np.ndarray, " passages"],
    ) -> None:
        self.ids = ids
        self.text_hashes = text_hashes
        self.characters = characters
        # Stable, so that of passages with equal ids the first counts.
        order = np.argsort(id_hashes, kind="stable")
        self._sorted_hashes = id_hashes[order]
        self._sorted_rows = order.astype(np.int32)

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "CorpusTable":
        """Read a corpus once.

        Args:
            passages: The corpus in its order.

        Raises:
            NegativesError: If there is no passage.
        """
        id_hashes, text_hashes, characters = array("Q"), array("Q"), array("i")

        def _ids() -> Iterable[str]:
            for passage in passages:
                id_hashes.append(stable_hash(passage.id))
                text_hashes.append(stable_hash(normalised(passage.text or passage.title)))
                characters.append(len(passage.content))
                if on_progress is not None and len(id_hashes) % 1000 == 0:
                    on_progress(len(id_hashes), len(id_hashes))
                yield passage.id

        ids = IdTable.build(_ids())
        if not len(ids):
            raise NegativesError("expected a corpus to mine from, it holds no passage")
        return cls(
            ids,
            id_hashes=np.frombuffer(id_hashes, dtype=np.uint64),
            text_hashes=np.frombuffer(text_hashes, dtype=np.uint64),
            characters=np.frombuffer(characters, dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, passage_ids: Sequence[str]) -> Int64[np.ndarray, " ids"]:
        """Return the row of each passage id, -1 where the corpus does not hold it."""
        return self.rows_of_hashes(stable_hashes(passage_ids))

    def rows_of_hashes(self, wanted: UInt64[np.ndarray, " ids"]) -> Int64[np.ndarray, " ids"]:
        """Return the row of each passage by its id's :func:`stable_hash`, -1 where unknown."""
        places = np.searchsorted(self._sorted_hashes, wanted)
        places = np.minimum(places, len(self._sorted_hashes) - 1)
        found = self._sorted_hashes[places] == wanted
        return np.where(found, self._sorted_rows[places], -1).astype(np.int64)


class JudgementTable:
    """Positives by query, as arrays: 20 bytes for each judgement, however many queries.

    Args:
        query_hashes: Hash of the query id of each judgement.
    """

    def __init__(
        self,
        *,
        query_hashes: UInt64[np.ndarray, " judgements"],
        rows: Int64[np.ndarray, " judgements"],
        grades: Int[np.ndarray, " judgements"],
    ) -> None:
        order = np.argsort(query_hashes, kind="stable")
        self._hashes = query_hashes[order]
        self._rows = rows[order]
        self._grades = grades[order]
        self.queries = len(np.unique(self._hashes))

    @classmethod
    def build(
        cls, judgements: Iterable[tuple[str, str, int]], *, corpus: CorpusTable
    ) -> "JudgementTable":
        """Read judgements once."""
        query_hashes, passage_hashes, grades = array("Q"), array("Q"), array("q")
        for query_id, passage_id, grade in judgements:
            query_hashes.append(stable_hash(query_id))
            passage_hashes.append(stable_hash(passage_id))
            grades.append(grade)
        return cls(
            query_hashes=_numbers(query_hashes, np.uint64),
            rows=corpus.rows_of_hashes(_numbers(passage_hashes, np.uint64)),
            grades=_numbers(grades, np.int64),
        )

    def query_hashes(self) -> UInt64[np.ndarray, " queries"]:
        """Return the hash of each judged query's id, sorted."""
        return np.unique(self._hashes)

    def of(
        self, query_id: str
    ) -> tuple[Int64[np.ndarray, " judged"], Int[np.ndarray, " judged"]] | None:
        """Return corpus rows and grades of a query's judgements, None where it has none."""
        wanted = np.uint64(stable_hash(query_id))
        start = int(np.searchsorted(self._hashes, wanted))
        end = int(np.searchsorted(self._hashes, wanted, side="right"))
        if start == end:
            return None
        return self._rows[start:end], self._grades[start:end]


def _numbers(values: "array[int]", dtype: type) -> np.ndarray:
    return np.frombuffer(values, dtype=dtype) if values else np.zeros(0, dtype=dtype)
