"""An index in PostgreSQL with pgvector (optional extra ``postgres``)."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Float32

from dptdr.errors import NoSuchField, VectorsError
from dptdr.records import Document, Passage
from dptdr.search.index import SearchResults, check_query_vectors
from dptdr.search.indexes.options import PGVECTOR_BOUNDS, Options, check_options
from dptdr.search.indexes.recall import measure_recall
from dptdr.search.stores.loading import (
    check_ids,
    check_reloaded,
    check_upsert,
    in_order,
    load_folder,
    search_results,
)
from dptdr.search.stores.postgres_session import Session
from dptdr.search.vectors.documents import Filter, wanted_numbers, wanted_values
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import Origin

BATCH_ROWS = 2000
"""Passages per transaction."""

_MOST_INDEXED_DIM = 2000
"""Maximum dimension that pgvector can index in float32; larger vectors are indexed as halfvec."""
_MAX_DIM = 4000
_MOST_ROWS = 2**62
_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.1

_DROP_INACTIVE = "DELETE FROM dptdr.collections WHERE name = %s AND NOT active"
_GRAPHS_OF_NOTHING = r"""
SELECT indexname FROM pg_indexes
WHERE schemaname = 'dptdr' AND indexname ~ '^passages_hnsw_\d+$'
AND NOT EXISTS (SELECT FROM dptdr.collections WHERE indexname = 'passages_hnsw_' || id)
"""
"""Finds the graphs of collections that are gone."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A set of vectors in the database."""

    number: int
    dim: int
    origin: Origin

    @property
    def vector(self) -> str:
        """SQL expression that the index covers."""
        return f"(vector::{self.cast})"

    @property
    def cast(self) -> str:
        """SQL type of the vectors."""
        kind = "vector" if self.dim <= _MOST_INDEXED_DIM else "halfvec"
        return f"{kind}({self.dim})"

    @property
    def operators(self) -> str:
        """Operator class for the index."""
        return "vector_ip_ops" if self.dim <= _MOST_INDEXED_DIM else "halfvec_ip_ops"


class PostgresIndex:
    """The active collection with a given name in a PostgreSQL database.

    Args:
        dsn: Connection URI, such as ``postgresql://user@host/name``.

    Raises:
        VectorsError: If the database is unreachable or has no such index.
    """

    index_type = "postgres"

    def __init__(self, dsn: str, name: str) -> None:
        self.session = Session(dsn, snapshots=True)
        self.name = name
        try:
            self.collection = self.session.run(self._active)
        except BaseException:
            self.session.close()
            raise

    def _run(self, work: Callable[[Any, int], Result]) -> Result:
        """Run a transaction, given the number of the active collection.

        Both are of one snapshot, so that the collection is not exchanged in between.

        Raises:
            WrongPrompt: If its vectors are those of another prompt or backbone than at the start.
        """

        def both(connection: Any) -> Result:
            found = self._active(connection)
            check_reloaded(self.origin, found.origin, name=self.name)
            self.collection = found
            return work(connection, found.number)

        return self.session.run(both)

    @property
    def count(self) -> int:
        """Number of passages."""
        query = "SELECT count(*) FROM dptdr.passages WHERE collection = %s"
        return int(self._run(lambda c, number: c.execute(query, [number]).fetchone()[0]))

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.collection.dim

    @property
    def origin(self) -> Origin:
        """Origin of the vectors."""
        return self.collection.origin

    def _active(self, connection: Any) -> Collection:
        row = _find_row(connection, self.name, active=True)
        if row is None:
            raise VectorsError(
                f"{self.session.where()}: no index '{self.name}'; create it with load_postgres"
            )
        number, dim, stored, _ = row
        where = f"{self.session.where()}, index '{self.name}'"
        origin = Origin.from_json(stored, where=where)
        if dim != origin.dim:
            raise VectorsError(
                f"{where}: expected vectors of dimension {origin.dim}, as their origin says, got "
                f"{dim}; load the vectors again"
            )
        return Collection(number=number, dim=dim, origin=origin)

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> SearchResults:
        """Return the best passages; see :class:`dptdr.search.index.Index`.

        Each call looks up the active collection, so a reload takes effect immediately.

        Raises:
            NoSuchField: If there are no hits because a filter names a field that no passage has.
        """
        queries = check_query_vectors(vectors, dim=self.dim, depth=depth)
        # Larger numbers are none of PostgreSQL's.
        depth = min(depth, _MOST_ROWS)

        def work(connection: Any, number: int) -> list[list[tuple[str, float]]]:
            statement, values = self._statement(filters, depth=depth)

            def hits(query: np.ndarray) -> list[tuple[str, float]]:
                parameters = {"query": query, **values}
                found: list[tuple[str, float]] = connection.execute(
                    statement, parameters, binary=True
                ).fetchall()
                return found

            # Filters may reject the first candidates: keep scanning until there are enough hits.
            connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            connection.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(100, depth))}")
            found = [hits(query) for query in queries]
            # The scan of a graph ends after some number of candidates; a plain one misses none.
            connection.execute("SET LOCAL enable_indexscan = off")
            found = [
                hits(query) if len(few) < depth else few
                for query, few in zip(queries, found, strict=True)
            ]
            if queries.size and not any(found):
                for condition in filters:
                    _check_field(connection, number, condition.field)
            return found

        return search_results(self._run(work))

    def _statement(self, filters: Sequence[Filter], *, depth: int) -> tuple[str, dict[str, object]]:
        """Build the SQL of a search and its parameters."""
        here = self.collection
        conditions = [f"collection = {here.number:d}"]
        values: dict[str, object] = {}
        for place, condition in enumerate(filters):
            field, texts = f"field{place}", f"texts{place}"
            numbers, others = f"numbers{place}", f"others{place}"
            values |= {
                field: condition.field,
                texts: list(condition.values),
                numbers: wanted_numbers(condition.values),
                others: wanted_values(condition.values),
            }
            held = f"metadata -> %({field})s"
            conditions.append(
                f"metadata ? %({field})s AND EXISTS (SELECT FROM jsonb_array_elements("
                f"CASE jsonb_typeof({held}) WHEN 'array' THEN {held} "
                f"ELSE jsonb_build_array({held}) END) AS e WHERE CASE jsonb_typeof(e) "
                f"WHEN 'string' THEN e #>> '{{}}' = ANY(%({texts})s) "
                f"WHEN 'number' THEN e #>> '{{}}' = ANY(%({numbers})s) "
                f"ELSE e = ANY(%({others})s::jsonb[]) END)"
            )
        distance = f"{here.vector} <#> %(query)s::{here.cast}"
        statement = (
            f"SELECT id, -({distance}) FROM dptdr.passages WHERE {' AND '.join(conditions)} "
            f"ORDER BY {distance} LIMIT {depth:d}"
        )
        return statement, values

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Look up passages by id; see :class:`dptdr.search.index.Index`."""
        query = (
            "SELECT id, title, text, metadata FROM dptdr.passages "
            "WHERE collection = %s AND id = ANY(%s)"
        )
        rows = self._run(lambda c, number: c.execute(query, [number, list(ids)]).fetchall())
        found = (Document(Passage(row[0], row[2], row[1]), row[3]) for row in rows)
        return in_order(found, ids, name=self.name)

    def upsert(
        self,
        documents: Sequence[Document],
        vectors: Float[np.ndarray, "passages dim"],
        *,
        passage_fingerprint: str,
    ) -> None:
        """Insert or replace passages by id, in one transaction.

        Raises:
            WrongPrompt: If the collection's vectors come from a different prompt or backbone.
            VectorsError: If a vector is invalid, an id is duplicated, or the database is
                unreachable.
        """

        def work(connection: Any, number: int) -> None:
            checked = check_upsert(
                vectors,
                documents=documents,
                origin=self.origin,
                passage_fingerprint=passage_fingerprint,
                name=self.name,
            )
            copy_rows(connection, number, documents=documents, vectors=checked)

        self._run(work)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete passages by id, ignoring unknown ids, and return the number deleted."""
        check_ids(ids)
        query = "DELETE FROM dptdr.passages WHERE collection = %s AND id = ANY(%s)"
        return int(self._run(lambda c, number: c.execute(query, [number, list(ids)]).rowcount))

    @property
    def recall(self) -> float | None:
        """Recall@10 measured after the load; None for collections of version 0.1.0."""
        query = "SELECT recall FROM dptdr.collections WHERE id = %s"
        found = self._run(lambda c, number: c.execute(query, [number]).fetchone()[0])
        return None if found is None else float(found)

    def keep_recall(self, recall: float) -> None:
        """Store the measured recall with the active collection."""
        statement = "UPDATE dptdr.collections SET recall = %s WHERE id = %s"
        self._run(lambda c, number: c.execute(statement, [recall, number]))

    def close(self) -> None:
        """Close the connection."""
        self.session.close()


def load_postgres(
    folder: VectorFolder,
    *,
    dsn: str,
    name: str,
    options: Options | None = None,
    batch_rows: int = BATCH_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> PostgresIndex:
    """Load a vector folder into PostgreSQL, index it and activate it.

    Each batch is committed together with the count of loaded rows, so an interrupted load neither
    loses nor duplicates rows; call again to resume. Any previously active collection serves until
    the new one is complete, and is then deleted. A lock keeps other loads of the name away.

    Args:
        dsn: Connection URI.
        options: ``M`` and ``ef_construction`` of the graph; 16 and 100 by default.

    Raises:
        VectorsError: If an option has no effect, the vectors are damaged, another load of that
            name is in progress, or the database is unreachable.
    """
    graph = _graph_options(options or {})
    if folder.dim > _MAX_DIM:
        raise VectorsError(
            f"{folder.path}: pgvector indexes at most {_MAX_DIM:,} dimensions, got {folder.dim:,}"
        )
    session = Session(dsn)
    try:
        target = _Loading(session, origin=folder.manifest.origin, name=name, graph=graph)
        load_folder(folder, target, batch_rows=batch_rows, on_progress=on_progress)
        index = PostgresIndex(dsn, name)
        # Half precision keeps 11 significant bits.
        tolerance = 1e-5 if index.dim <= _MOST_INDEXED_DIM else 2e-3
        index.keep_recall(round(measure_recall(index, folder, tolerance=tolerance), 4))
    finally:
        session.close()
    return index


def _graph_options(options: Options) -> dict[str, int]:
    found = check_options(
        options, index_type="postgres", accepted=tuple(PGVECTOR_BOUNDS), bounds=PGVECTOR_BOUNDS
    )
    links = found.setdefault("M", 16)
    width = found.setdefault("ef_construction", max(100, 2 * links))
    if width < 2 * links:
        raise VectorsError(
            f"option ef_construction: pgvector expects at least 2 * M = {2 * links}, got {width}"
        )
    return found


class _Loading:
    """Loads vectors into a new collection, then makes it the active one.

    It is the target of :func:`dptdr.search.stores.loading.load_folder`.
    """

    def __init__(
        self, session: Session, *, origin: Origin, name: str, graph: dict[str, int]
    ) -> None:
        self.session = session
        self.origin = origin
        self.name = name
        self.graph = graph
        self.collection = Collection(number=0, dim=origin.dim, origin=origin)

    def _run(self, work: Callable[[Any], Result]) -> Result:
        """Run a transaction, holding the lock of the name from the first one to the last."""

        def locked(connection: Any) -> Result:
            self._lock(connection)
            return work(connection)

        return self.session.run(locked)

    def _lock(self, connection: Any) -> None:
        # The session holds it until its connection ends, and may take it any number of times.
        lock = "SELECT pg_try_advisory_lock(hashtextextended(%s, 7305811))"
        for _ in range(_LOCK_TRIES):
            if connection.execute(lock, [self.name]).fetchone()[0]:
                return
            # This load's connection that broke may still hold it.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s AND pid <> pg_backend_pid()",
                [self.session.label],
            )
            time.sleep(_LOCK_PAUSE_SECONDS)
        raise VectorsError(
            f"{self.session.where()}: another load of index '{self.name}' is in progress; wait "
            "until it ends, then load again"
        )

    def begin(self) -> int:
        """Find or create the incomplete collection for these vectors; drop any others."""

        def work(connection: Any) -> tuple[int, int]:
            from psycopg.types.json import Jsonb

            found = _find_row(connection, self.name, active=False)
            origin = self.origin
            # A damaged record is discarded, as is one that belongs to different vectors.
            if found is not None and found[1:3] == (origin.dim, origin.as_json()):
                return found[0], found[3]
            connection.execute(_DROP_INACTIVE, [self.name])
            row = connection.execute(
                "INSERT INTO dptdr.collections (name, dim, passage_fingerprint, origin) "
                "VALUES (%s, %s, %s, %s) RETURNING id",
                [self.name, origin.dim, origin.passage_fingerprint, Jsonb(origin.as_json())],
            ).fetchone()
            return row[0], 0

        number, loaded = self._run(work)
        self.collection = replace(self.collection, number=number)
        return loaded

    def send(
        self,
        documents: Sequence[Document],
        vectors: Float32[np.ndarray, "rows dim"],
        *,
        loaded: int,
    ) -> None:
        """Load rows and update their count in one transaction."""

        def work(connection: Any) -> None:
            self._set(connection, "loaded", loaded)
            copy_rows(connection, self.collection.number, documents=documents, vectors=vectors)

        self._run(work)

    def _set(self, connection: Any, column: str, value: object) -> None:
        """Change the collection's record.

        Raises:
            VectorsError: If another load has removed it while this one had no connection.
        """
        statement = f"UPDATE dptdr.collections SET {column} = %s WHERE id = %s"
        if connection.execute(statement, [value, self.collection.number]).rowcount != 1:
            raise VectorsError(
                f"{self.session.where()}: another load of index '{self.name}' has removed what "
                "this one had loaded; load again"
            )

    def activate(self) -> None:
        """Build the graph, then activate the collection."""
        collection = self.collection
        number = collection.number

        def build(connection: Any) -> None:
            # A killed call may have left an index with different options.
            connection.execute(f"DROP INDEX IF EXISTS dptdr.passages_hnsw_{number:d}")
            connection.execute(
                f"CREATE INDEX passages_hnsw_{number:d} ON dptdr.passages USING hnsw "
                f"({collection.vector} {collection.operators}) "
                f"WITH (m = {self.graph['M']:d}, "
                f"ef_construction = {self.graph['ef_construction']:d}) "
                f"WHERE collection = {number:d}"
            )

        def flip(connection: Any) -> None:
            old = "UPDATE dptdr.collections SET active = false WHERE name = %s AND id <> %s"
            connection.execute(old, [self.name, number])
            self._set(connection, "active", "true")
            connection.execute(_DROP_INACTIVE, [self.name])

        def drop(connection: Any) -> None:
            for (graph,) in connection.execute(_GRAPHS_OF_NOTHING).fetchall():
                connection.execute(f"DROP INDEX IF EXISTS dptdr.{graph}")

        for step in (build, flip, drop):
            self._run(step)


def _check_field(connection: Any, number: int, field: str) -> None:
    """Reject a metadata field that no passage has."""
    query = "SELECT FROM dptdr.passages WHERE collection = %s AND metadata ? %s LIMIT 1"
    if not connection.execute(query, [number, field]).fetchall():
        raise NoSuchField(f"no passage has the metadata field '{field}'")


def _find_row(connection: Any, name: str, *, active: bool) -> tuple[int, int, Any, int] | None:
    """Return the newest collection with a name as stored: number, dimension, origin, loaded rows.

    Args:
        active: Look for the serving collection rather than one being loaded.
    """
    query = (
        "SELECT id, dim, origin, loaded FROM dptdr.collections WHERE name = %s AND active = %s "
        "ORDER BY id DESC LIMIT 1"
    )
    found: tuple[int, int, Any, int] | None = connection.execute(query, [name, active]).fetchone()
    return found


def copy_rows(
    connection: Any,
    collection: int,
    *,
    documents: Iterable[Document],
    vectors: Float[np.ndarray, "rows dim"],
) -> None:
    """Upsert passages into a collection (by number) using binary COPY."""
    from psycopg.types.json import Jsonb

    columns = "id, title, text, metadata, vector"
    connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming (id text, title text, text text, "
        "metadata jsonb, vector vector) ON COMMIT DROP"
    )
    connection.execute("TRUNCATE incoming")
    with connection.cursor().copy(f"COPY incoming ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "text", "text", "jsonb", "vector"])
        for (passage, metadata), vector in zip(documents, vectors, strict=True):
            copy.write_row((passage.id, passage.title, passage.text, Jsonb(dict(metadata)), vector))
    connection.execute(
        f"INSERT INTO dptdr.passages (collection, {columns}) SELECT %s, {columns} FROM incoming "
        "ON CONFLICT (collection, id) DO UPDATE SET title = excluded.title, text = excluded.text, "
        "metadata = excluded.metadata, vector = excluded.vector",
        [collection],
    )
