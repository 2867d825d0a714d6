"""Corpus and judgement tables for mining: ids, duplicate texts, lengths.

Texts stay on disk. A passage takes the bytes of its id plus 36.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt64

from dptdr.errors import NegativesError
from dptdr.io.ids import IdTable, RowTable, normalised, stable_hash, stable_hashes
from dptdr.records import Passage


class CorpusTable:
    """Corpus rows by id, with a hash of each normalised text.

    Passages are duplicates if their texts, ignoring titles, are equal after
    :func:`dptdr.io.ids.normalised`; a passage without text is compared by title. Ids and texts are
    looked up by 64-bit hashes; with ten million passages, the probability of any collision is 1 in
    300,000.
    """

    def __init__(
        self,
        ids: IdTable,
        *,
        rows: RowTable,
        text_hashes: UInt64[np.ndarray, " passages"],
        characters: Int32[np.ndarray, " passages"],
    ) -> None:
        self.ids = ids
        self.text_hashes = text_hashes
        self.characters = characters
        self._rows = rows

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "CorpusTable":
        """Build the table in one pass over a corpus.

        Raises:
            NegativesError: If there are no passages.
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
            raise NegativesError("expected a corpus to mine from, got no passages")
        return cls(
            ids,
            rows=RowTable(np.frombuffer(id_hashes, dtype=np.uint64)),
            text_hashes=np.frombuffer(text_hashes, dtype=np.uint64),
            characters=np.frombuffer(characters, dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, passage_ids: Sequence[str]) -> Int64[np.ndarray, " ids"]:
        """Return the row of each passage id, or -1 if unknown."""
        return self.rows_of_hashes(stable_hashes(passage_ids))

    def rows_of_hashes(self, wanted: UInt64[np.ndarray, " ids"]) -> Int64[np.ndarray, " ids"]:
        """Look up rows by the :func:`dptdr.io.ids.stable_hash` of their ids; -1 if unknown."""
        return self._rows.first_rows(wanted)


class JudgementTable:
    """Judgements by query, in arrays of 32 bytes per judgement."""

    def __init__(
        self,
        queries: RowTable,
        *,
        rows: Int64[np.ndarray, " judgements"],
        grades: Int[np.ndarray, " judgements"],
        conflicting: bool = False,
    ) -> None:
        self.conflicting = conflicting
        self._table = queries
        self._rows = rows
        self._grades = grades
        self.queries = len(queries.hashes())

    @classmethod
    def build(
        cls, judgements: Iterable[tuple[str, str, int]], *, corpus: CorpusTable
    ) -> "JudgementTable":
        """Build the table in one pass over (query id, passage id, grade) judgements."""
        queries, passages, grades = array("Q"), array("Q"), array("q")
        for query_id, passage_id, grade in judgements:
            queries.append(stable_hash(query_id))
            passages.append(stable_hash(passage_id))
            grades.append(grade)
        hashes = [np.array(column, dtype=np.uint64) for column in (queries, passages)]
        found = np.array(grades, dtype=np.int64)
        order = np.lexsort((found, *hashes))
        same_pair = np.all([column[order][1:] == column[order][:-1] for column in hashes], axis=0)
        return cls(
            RowTable(hashes[0]),
            rows=corpus.rows_of_hashes(hashes[1]),
            grades=found,
            conflicting=bool((same_pair & (np.diff(found[order]) != 0)).any()),
        )

    def query_hashes(self) -> UInt64[np.ndarray, " queries"]:
        """Return the sorted hashes of the judged queries' ids."""
        return self._table.hashes()

    def of(
        self, query_id: str
    ) -> tuple[Int64[np.ndarray, " judged"], Int[np.ndarray, " judged"]] | None:
        """Return the corpus rows (-1 if unknown) and grades of a query's judgements, or None."""
        found = self._table.rows(query_id)
        return (self._rows[found], self._grades[found]) if len(found) else None
