"""Store judged pairs of texts in a temporary database, for constant memory."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dptdr.records import Judgement, Query

# Texts and pairs lie in the order in which their queries came: by hash, each row would read and
# write a page of its own.
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE passages (id INTEGER PRIMARY KEY);
CREATE TABLE queries (number INTEGER PRIMARY KEY, id INTEGER UNIQUE, text TEXT);
CREATE TABLE pairs (
    split TEXT, query INTEGER, passage INTEGER, number INTEGER, grade INTEGER,
    PRIMARY KEY (query, passage, split)
) WITHOUT ROWID;
CREATE TABLE answers (
    query INTEGER, passage INTEGER, PRIMARY KEY (query, passage)
) WITHOUT ROWID;
CREATE TABLE negatives (
    split TEXT, query INTEGER, passage INTEGER, number INTEGER,
    PRIMARY KEY (query, passage, split)
) WITHOUT ROWID;
"""
_PAIR = "split = ? AND query = ? AND passage = ?"


def text_id(text: str) -> str:
    """Return the id of a text: 64 bits of its SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:8].hex()


def _key(record_id: str) -> int:
    return int.from_bytes(bytes.fromhex(record_id), "big", signed=True)


def _id(key: int) -> str:
    return key.to_bytes(8, "big", signed=True).hex()


class NegativesOfQuery(NamedTuple):
    """The positives and negatives of a query."""

    query_id: str
    positives: list[str]
    negatives: list[str]


class PairStore(Mapping[str, Iterator[Judgement]]):
    """Queries and judged pairs, in insertion order.

    As a mapping, it gives the judgements of each split. The database is a temporary SQLite file,
    deleted with the object.
    """

    def __init__(self) -> None:
        # An empty name makes SQLite create a private temporary file.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")
        self._number = 0

    def add_passage(self, passage_id: str) -> bool:
        """Add a passage; return whether it is new."""
        return self._insert("INSERT OR IGNORE INTO passages VALUES (?)", _key(passage_id))

    def add_query(self, query: Query) -> int:
        """Add a query, unless it is there; return its number."""
        self._number += 1
        key = _key(query.id)
        insert = "INSERT OR IGNORE INTO queries VALUES (?, ?, ?)"
        if self._insert(insert, self._number, key, query.text):
            return self._number
        return self._one("SELECT number FROM queries WHERE id = ?", key)

    def add_pair(self, split: str, query: int, passage_id: str, grade: int) -> int | None:
        """Add a pair; return the grade that it already has, if any."""
        self._number += 1
        key = (split, query, _key(passage_id))
        if self._insert(
            "INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?, ?)", *key, self._number, grade
        ):
            return None
        return self._one(f"SELECT grade FROM pairs WHERE {_PAIR}", *key)

    def set_grade(self, split: str, query: int, passage_id: str, grade: int) -> None:
        """Replace the grade of a pair."""
        self._insert(
            f"UPDATE pairs SET grade = ? WHERE {_PAIR}", grade, split, query, _key(passage_id)
        )

    def add_negative(self, split: str, query: int, passage_id: str) -> None:
        """Add a negative passage for a query."""
        self._number += 1
        values = (split, query, _key(passage_id), self._number)
        self._insert("INSERT OR IGNORE INTO negatives VALUES (?, ?, ?, ?)", *values)

    def add_answer(self, query: int, passage_id: str) -> None:
        """Add a positive under another id, which is no negative either."""
        self._insert("INSERT OR IGNORE INTO answers VALUES (?, ?)", query, _key(passage_id))

    def drop_negatives_that_answer(self) -> int:
        """Delete negatives that are also positives of the same query; return their number."""
        return self._database.execute(
            "DELETE FROM negatives WHERE EXISTS (SELECT 1 FROM pairs WHERE grade > 0"
            " AND pairs.query = negatives.query AND pairs.passage = negatives.passage)"
            " OR EXISTS (SELECT 1 FROM answers"
            " WHERE answers.query = negatives.query AND answers.passage = negatives.passage)"
        ).rowcount

    def queries(self) -> Iterator[Query]:
        """Yield the queries."""
        for key, text in self._database.execute("SELECT id, text FROM queries ORDER BY number"):
            yield Query(_id(key), text)

    def queries_in_several_splits(self) -> int:
        """Count the queries that are judged in more than one split."""
        return self._one(
            "SELECT count(*) FROM (SELECT 1 FROM pairs GROUP BY query"
            " HAVING min(split) < max(split))"
        )

    def negatives(self, split: str) -> Iterator[NegativesOfQuery]:
        """Yield the split's queries with positives, provided the split has any negatives."""
        some = "SELECT 1 FROM negatives WHERE split = ? LIMIT 1"
        if self._database.execute(some, (split,)).fetchone() is None:
            return
        queries = self._database.execute(
            "SELECT DISTINCT query, id FROM pairs JOIN queries ON queries.number = query"
            " WHERE split = ? AND grade > 0 ORDER BY query",
            (split,),
        )
        for number, key in queries:
            negatives = self._database.execute(
                "SELECT passage FROM negatives WHERE split = ? AND query = ? ORDER BY number",
                (split, number),
            )
            found = [_id(passage) for (passage,) in negatives]
            yield NegativesOfQuery(_id(key), self._positives(split, number), found)

    def _positives(self, split: str, query: int) -> list[str]:
        rows = self._database.execute(
            "SELECT passage FROM pairs WHERE split = ? AND query = ? AND grade > 0 ORDER BY number",
            (split, query),
        )
        return [_id(passage) for (passage,) in rows]

    def __getitem__(self, split: str) -> Iterator[Judgement]:
        """Yield the judgements of a split."""
        rows = self._database.execute(
            "SELECT id, passage, grade FROM pairs JOIN queries ON queries.number = query"
            " WHERE split = ? ORDER BY query, pairs.number",
            (split,),
        )
        return (Judgement(_id(query), _id(passage), grade) for query, passage, grade in rows)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of splits with judgements."""
        names = self._database.execute("SELECT DISTINCT split FROM pairs ORDER BY split")
        return iter([name for (name,) in names.fetchall()])

    def __len__(self) -> int:
        """Number of splits with judgements."""
        return len(list(iter(self)))

    def _insert(self, statement: str, *values: int | str) -> bool:
        return self._database.execute(statement, values).rowcount > 0

    def _one(self, statement: str, *values: int | str) -> int:
        return int(self._database.execute(statement, values).fetchone()[0])
