"""Database addresses: PostgreSQL, or Qdrant as a server or in a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dptdr.errors import VectorsError
from dptdr.io.outputs import refuse_foreign
from dptdr.search.index import Index
from dptdr.search.indexes.options import Options
from dptdr.search.vectors.folder import VectorFolder

_FORMS = "postgresql://USER@HOST/DATABASE, http://HOST:6333 (Qdrant) or qdrant:FOLDER"


class DatabaseIndex(Index, Protocol):
    """Protocol for an index with a connection to close."""

    @property
    def recall(self) -> float | None:
        """Recall@10 against exact search; None if not measured."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def open_database(address: str, name: str) -> DatabaseIndex:
    """Open an index in a database.

    Args:
        address: ``postgresql://...``, ``http://...`` or ``https://...`` for a Qdrant server (with
            its key from the environment variable QDRANT_API_KEY), or ``qdrant:FOLDER`` for
            Qdrant's local mode.

    Raises:
        VectorsError: If the address is not recognised, or the database is unreachable or has no
            such index.
    """
    if _is_postgres(address):
        from dptdr.search.stores.postgres import PostgresIndex

        return PostgresIndex(address, name)
    from dptdr.search.stores.qdrant import QdrantIndex

    folder = address.removeprefix("qdrant:")
    if folder != address and not Path(folder).is_dir():
        raise VectorsError(f"{folder}: expected a Qdrant folder, got none")
    client = _qdrant(address)
    try:
        return QdrantIndex(client, name)
    except BaseException:
        client.close()
        raise


def load_database(
    folder: VectorFolder,
    *,
    address: str,
    name: str,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatabaseIndex:
    """Load a vector folder into a database; any old collection serves until the load is complete.

    Args:
        options: ``M`` and ``ef_construction`` of the graph.

    Raises:
        VectorsError: If the address is not recognised, an option has no effect, the vectors are
            damaged, or the database is unreachable. Loaded rows are kept; call again to resume.
    """
    if _is_postgres(address):
        from dptdr.search.stores.postgres import load_postgres

        return load_postgres(
            folder, dsn=address, name=name, options=options, on_progress=on_progress
        )
    from dptdr.search.stores.qdrant import load_qdrant

    client = _qdrant(address)
    try:
        return load_qdrant(
            folder, client=client, name=name, options=options, on_progress=on_progress
        )
    except BaseException:
        client.close()
        raise


def _is_postgres(address: str) -> bool:
    return address.startswith(("postgresql://", "postgres://"))


def _qdrant(address: str) -> Any:
    if not address.startswith(("http://", "https://", "qdrant:")):
        raise VectorsError(f"expected a database address such as {_FORMS}, got '{address}'")
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise VectorsError(
            f"Qdrant needs the qdrant-client package ({error}); run `pip install 'dptdr[qdrant]'`"
        ) from None
    if address.startswith("qdrant:"):
        folder = Path(address.removeprefix("qdrant:"))
        refuse_foreign(folder, mark="meta.json")
        try:
            return QdrantClient(path=str(folder))
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VectorsError(f"{address}: cannot open ({reason})") from None
        # Of another meta.json; the client does not check it.
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise VectorsError(
                f"{folder / 'meta.json'}: expected that of a Qdrant folder "
                f"({type(error).__name__}: {error}); choose a different folder"
            ) from None
    return QdrantClient(
        url=address, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False
    )
