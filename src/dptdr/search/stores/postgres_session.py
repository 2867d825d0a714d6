"""A PostgreSQL session that reconnects, and the shared schema.

Each set of vectors is a numbered *collection*, which records the fingerprints of the encoder; rows
refer to it by number. Each name has one active collection, so a new one can be loaded alongside and
swapped in within one transaction.
"""

import re
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from dptdr.errors import VectorsError

_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.2

Result = TypeVar("Result")

SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS dptdr;
CREATE TABLE IF NOT EXISTS dptdr.collections (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    active boolean NOT NULL DEFAULT false,
    loaded bigint NOT NULL DEFAULT 0,
    dim integer NOT NULL,
    passage_fingerprint text NOT NULL,
    origin jsonb NOT NULL,
    created timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE dptdr.collections ADD COLUMN IF NOT EXISTS recall double precision;
CREATE UNIQUE INDEX IF NOT EXISTS one_active_collection ON dptdr.collections (name) WHERE active;
CREATE TABLE IF NOT EXISTS dptdr.passages (
    collection integer NOT NULL REFERENCES dptdr.collections (id) ON DELETE CASCADE,
    id text NOT NULL,
    title text NOT NULL,
    text text NOT NULL,
    metadata jsonb NOT NULL,
    vector vector NOT NULL,
    PRIMARY KEY (collection, id)
);
"""


_COMPLETE = """
SELECT count(*) FROM information_schema.columns
WHERE table_schema = 'dptdr'
AND (table_name, column_name) IN (('collections', 'recall'), ('passages', 'vector'))
"""
"""Counts the columns that were created last."""


def import_psycopg() -> Any:
    """Import psycopg and pgvector.

    Raises:
        VectorsError: If the extra ``postgres`` is not installed.
    """
    try:
        import pgvector.psycopg
        import psycopg
    except ImportError as error:
        raise VectorsError(
            f"PostgreSQL needs psycopg and pgvector ({error}); run `pip install 'dptdr[postgres]'`"
        ) from None
    del pgvector
    return psycopg


class Session:
    """Runs transactions, retrying on a new connection if one breaks.

    Args:
        dsn: Connection URI, such as ``postgresql://user@host/name``.
        snapshots: Let each transaction see the database as it was at its first statement, and run
            it again if that conflicts with what others wrote since.
    """

    def __init__(self, dsn: str, *, snapshots: bool = False) -> None:
        self.dsn = dsn
        self.snapshots = snapshots
        # Tells a loader which other connections are its own broken ones.
        self.label = f"dptdr-{uuid.uuid4().hex}"
        self.reconnections = 0
        self._psycopg = import_psycopg()
        errors = self._psycopg.errors
        self._conflicts = (
            errors.SerializationFailure,
            errors.DeadlockDetected,
            errors.ForeignKeyViolation,
        )
        self._connection: Any = None

    def run(self, work: Callable[[Any], Result]) -> Result:
        """Run a function in a transaction, retrying if the connection breaks.

        Args:
            work: Receives the connection. Must be idempotent: if the connection breaks, there is
                no way to know whether the transaction was committed.

        Raises:
            VectorsError: If the database rejects the work, or is unreachable after several tries.
        """
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            try:
                connection = self._connect()
                with connection.transaction():
                    return work(connection)
            except self._conflicts as error:
                if not self.snapshots or attempt == _TRIES:
                    raise self._rejected(error) from None
            except self._psycopg.OperationalError as error:
                # Disk full and out of memory are operational errors too, on a working connection.
                broken = self._connection is None or self._connection.closed
                if not broken or attempt == _TRIES:
                    raise VectorsError(f"{self.where()}: {self._advice(error)}") from None
                self.close()
                time.sleep(pause)
                pause *= 2
            except self._psycopg.Error as error:
                raise self._rejected(error) from None
            except UnicodeEncodeError:
                raise VectorsError(
                    f"{self.where()}: expected valid Unicode, got a lone surrogate"
                ) from None
        raise AssertionError("unreachable")

    def _rejected(self, error: Exception) -> VectorsError:
        return VectorsError(f"{self.where()}: rejected the operation ({self._message(error)})")

    def _connect(self) -> Any:
        if self._connection is None or self._connection.closed:
            from pgvector.psycopg import register_vector

            connection = self._psycopg.connect(
                self.dsn,
                autocommit=True,
                connect_timeout=10,
                application_name=None if self.snapshots else self.label,
            )
            connection.execute("SET client_min_messages = warning")
            # A role that may only read cannot create anything.
            if connection.execute(_COMPLETE).fetchone() != (2,):
                # Serialise schema creation: concurrent processes would collide in the catalogue.
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(7305810)")
                    connection.execute(SCHEMA)
            register_vector(connection)
            if self.snapshots:
                connection.isolation_level = self._psycopg.IsolationLevel.REPEATABLE_READ
            self._connection = connection
        return self._connection

    def _advice(self, error: Exception) -> str:
        return (
            f"no response after {_TRIES} tries ({self._message(error)}); check that PostgreSQL is "
            "running and reachable, then retry: completed work is kept"
            if self._connection is None or self._connection.closed
            else f"rejected the operation ({self._message(error)}); completed work is kept"
        )

    def _message(self, error: Exception) -> str:
        """Return an error's text on one line, without the password."""
        text = " ".join(str(error).split())
        for secret in re.findall(r"://[^/]*?:([^@]+)@", self.dsn):
            text = text.replace(secret, "***")
        return text[:300] or type(error).__name__

    def where(self) -> str:
        """Return host and database, without the password, for messages."""
        try:
            parts = self._psycopg.conninfo.conninfo_to_dict(self.dsn)
        except self._psycopg.Error:
            return "PostgreSQL"
        return f"PostgreSQL at {parts.get('host', 'localhost')}/{parts.get('dbname', '')}"

    def close(self) -> None:
        """Close the connection; the next call reconnects."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
