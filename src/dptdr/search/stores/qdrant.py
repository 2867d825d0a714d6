"""An index in Qdrant (optional extra ``qdrant``), for clusters.

Each set of vectors is a separate Qdrant collection named ``NAME-`` plus a hash of the vectors'
origin. Its metadata records the origin and the number of loaded rows. The name itself is an alias
for the serving collection, so a new one can be swapped in atomically.
"""

import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Float32

from dptdr.errors import NoSuchField, VectorsError
from dptdr.records import Document, Passage
from dptdr.search.index import SearchResults, check_query_vectors
from dptdr.search.indexes.options import QDRANT_BOUNDS, Options, check_options
from dptdr.search.stores.loading import (
    check_ids,
    check_reloaded,
    check_upsert,
    in_order,
    load_folder,
    search_results,
)
from dptdr.search.vectors.documents import Filter, plain_texts
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import Origin

BATCH_ROWS = 500
"""Passages per request."""

_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.2
_NAME = re.compile(r'[^<>:"/\\|?*\x00-\x1f]{1,200}')
_NAMESPACE = uuid.UUID("6f0c9d0e-4c1b-4f5a-9d55-0b6a4cf0d9a1")

Result = TypeVar("Result")


def _models() -> Any:
    try:
        from qdrant_client import models
    except ImportError as error:
        raise VectorsError(
            f"Qdrant needs the package qdrant-client ({error}); run `pip install 'dptdr[qdrant]'`"
        ) from None
    return models


class QdrantIndex:
    """An index stored in a Qdrant collection.

    Args:
        client: A connected ``qdrant_client.QdrantClient``.
        name: The collection's alias, which moves to a new collection when the index is rebuilt.

    Raises:
        VectorsError: If Qdrant is unreachable or has no such index.
    """

    index_type = "qdrant"
    recall = None
    """Not measured: the server builds the graph after loading, and local mode is exact."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        info = _again(lambda: _aliased(client, name))
        if info is None:
            raise VectorsError(f"Qdrant: no index '{name}'; create it with load_qdrant")
        self._origin = Origin.from_json(info["origin"], where=self._where)

    @property
    def _where(self) -> str:
        return f"Qdrant, index '{self.name}'"

    @property
    def count(self) -> int:
        """Number of passages."""
        return int(self._run(lambda name: self.client.count(name, exact=True)).count)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._origin.dim

    @property
    def origin(self) -> Origin:
        """Origin of the vectors."""
        return self._origin

    def _current(self) -> str:
        """Return the collection behind the alias, as it may have been loaded again.

        Raises:
            WrongPrompt: If its vectors are those of another prompt or backbone than at the start.
        """
        found = _aliased(self.client, self.name)
        if found is None:
            raise VectorsError(f"Qdrant: no index '{self.name}'; create it with load_qdrant")
        now = Origin.from_json(found["origin"], where=self._where)
        check_reloaded(self._origin, now, name=self.name)
        return str(found["collection"])

    def _run(self, work: Callable[[str], Result]) -> Result:
        """Run a request, and again if the collection was exchanged and deleted in the meantime."""
        while True:
            collection = _again(self._current)
            try:
                return _again(partial(work, collection))
            # Local mode raises a ValueError for a collection that is not there.
            except (VectorsError, ValueError):
                if _again(self._current) == collection:
                    raise

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        *,
        depth: int,
        filters: Sequence[Filter] = (),
    ) -> SearchResults:
        """Return the best passages; see :class:`dptdr.search.index.Index`.

        Raises:
            NoSuchField: If there are no hits because a filter names a field that no passage has.
        """
        models = _models()
        queries = check_query_vectors(vectors, dim=self.dim, depth=depth)
        condition = _condition(filters)
        requests = [
            models.QueryRequest(
                query=query.tolist(), filter=condition, limit=depth, with_payload=["id"]
            )
            for query in queries
        ]
        if not requests:
            return search_results([])
        answers = self._run(lambda name: self.client.query_batch_points(name, requests=requests))
        with self._payloads():
            found = [[(p.payload["id"], p.score) for p in answer.points] for answer in answers]
        if not any(found):
            for wanted in filters:
                self._check_field(wanted.field)
        return search_results(found)

    def _check_field(self, field: str) -> None:
        """Reject a metadata field that no passage has."""
        models = _models()
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=_key(field)))
        points, _ = self._run(
            lambda name: self.client.scroll(
                name, scroll_filter=models.Filter(must_not=[empty]), limit=1
            )
        )
        if not points:
            raise NoSuchField(f"no passage has the metadata field '{field}'")

    @contextlib.contextmanager
    def _payloads(self) -> Iterator[None]:
        """Convert errors of reading damaged points."""
        try:
            yield
        except (KeyError, TypeError) as error:
            raise VectorsError(
                f"{self._where}: the payload of a point is damaged ({type(error).__name__}: "
                f"{error}); load the vectors again"
            ) from None

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Look up passages by id; see :class:`dptdr.search.index.Index`."""
        wanted = [_point_id(name) for name in ids]
        points = self._run(lambda name: self.client.retrieve(name, ids=wanted))
        with self._payloads():
            return in_order((_document(point.payload) for point in points), ids, name=self.name)

    def upsert(
        self,
        documents: Sequence[Document],
        vectors: Float[np.ndarray, "passages dim"],
        *,
        passage_fingerprint: str,
    ) -> None:
        """Insert or replace passages by id.

        Raises:
            WrongPrompt: If the collection's vectors come from a different prompt or backbone.
            VectorsError: If a vector is invalid, an id is duplicated or Qdrant is unreachable.
        """
        if not documents:
            return
        checked = check_upsert(
            vectors,
            documents=documents,
            origin=self.origin,
            passage_fingerprint=passage_fingerprint,
            name=self.name,
        )
        points = _points(documents, checked, fingerprint=passage_fingerprint)

        def work(collection: str) -> None:
            self._mark_changed(collection)
            self.client.upsert(collection, points=points)

        self._run(work)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete passages by id, ignoring unknown ids, and return the number deleted."""
        check_ids(ids)
        points = [_point_id(name) for name in dict.fromkeys(ids)]
        if not points:
            return 0

        def work(collection: str) -> int:
            there = self.client.retrieve(collection, ids=points, with_payload=False)
            if there:
                self._mark_changed(collection)
                # Sent again by itself, as nothing would be there the second time.
                _again(lambda: self.client.delete(collection, points_selector=points))
            return len(there)

        return self._run(work)

    def _mark_changed(self, collection: str) -> None:
        """Record that the collection is no longer what was loaded, so that a load replaces it."""
        metadata = self.client.get_collection(collection).config.metadata or {}
        if not metadata.get("changed"):
            self.client.update_collection(collection, metadata=metadata | {"changed": True})

    def close(self) -> None:
        """Close the client."""
        self.client.close()


def load_qdrant(
    folder: VectorFolder,
    *,
    client: Any,
    name: str,
    options: Options | None = None,
    batch_rows: int = BATCH_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> QdrantIndex:
    """Load a vector folder into Qdrant and point the alias to it.

    Point ids are derived from passage ids, so resending a batch is harmless; the number of loaded
    rows is recorded after each batch, so that an interrupted load can resume. Any previous
    collection serves until the new one is complete, and is then deleted. Qdrant has no locks: of
    two loads of one name, the one that ends last serves.

    Args:
        client: A connected ``qdrant_client.QdrantClient``.
        options: ``M`` and ``ef_construction`` of the graph; Qdrant's defaults if omitted.

    Raises:
        VectorsError: If an option has no effect, the vectors are damaged or Qdrant is unreachable.
    """
    local = _is_local(client)
    graph = check_options(
        options or {},
        index_type="qdrant in a folder" if local else "qdrant",
        accepted=() if local else tuple(QDRANT_BOUNDS),
        bounds=QDRANT_BOUNDS,
    )
    target = _Loading(client, origin=folder.manifest.origin, name=name, graph=graph)
    if target.serves():
        target.apply_options()
    else:
        load_folder(folder, target, batch_rows=batch_rows, on_progress=on_progress)
    return QdrantIndex(client, name)


def _is_local(client: Any) -> bool:
    """Check whether a client uses Qdrant's local mode, which has no graph."""
    from qdrant_client.local.qdrant_local import QdrantLocal

    return isinstance(getattr(client, "_client", None), QdrantLocal)


class _Loading:
    """Loads vectors into a new collection, then points the alias to it.

    It is the target of :func:`dptdr.search.stores.loading.load_folder`.
    """

    def __init__(self, client: Any, *, origin: Origin, name: str, graph: dict[str, int]) -> None:
        self.client = client
        self.origin = origin
        self.name = name
        self.before = _again(lambda: _aliased(client, name))
        # A collection that was changed since it was loaded, or whose record is damaged, is replaced
        # by one of the other name.
        self.collection = f"{name}-{_number(origin)}"
        serving = self.before or {}
        if not self.serves() and serving.get("collection") == self.collection:
            self.collection += "-again"
        self.hnsw = None
        if graph:
            self.hnsw = _models().HnswConfigDiff(
                m=graph.get("M"), ef_construct=graph.get("ef_construction")
            )

    def serves(self) -> bool:
        """Check whether the alias already points to these vectors."""
        before = self.before
        return (
            before is not None
            and before["origin"] == self.origin.as_json()
            and not before.get("changed")
        )

    def apply_options(self) -> None:
        """Apply the options to the collection that serves."""
        assert self.before is not None
        collection = self.before["collection"]
        if self.hnsw is not None:
            _again(lambda: self.client.update_collection(collection, hnsw_config=self.hnsw))

    def begin(self) -> int:
        """Find or create the collection; return the number of rows already loaded."""
        return _again(self._begin)

    def _begin(self) -> int:
        client, models = self.client, _models()
        if client.collection_exists(self.collection):
            metadata = client.get_collection(self.collection).config.metadata or {}
            if not metadata.get("changed"):
                if self.hnsw is not None:
                    client.update_collection(self.collection, hnsw_config=self.hnsw)
                loaded = metadata.get("loaded")
                return loaded if type(loaded) is int else 0
            # It served until a load of other vectors was interrupted before it deleted this one.
            client.delete_collection(self.collection)
        client.create_collection(
            self.collection,
            vectors_config=models.VectorParams(size=self.origin.dim, distance=models.Distance.DOT),
            hnsw_config=self.hnsw,
            metadata={"origin": self.origin.as_json(), "loaded": 0},
        )
        return 0

    def send(
        self,
        documents: Sequence[Document],
        vectors: Float32[np.ndarray, "rows dim"],
        *,
        loaded: int,
    ) -> None:
        """Load rows, then record the count."""
        client, origin = self.client, self.origin
        points = _points(documents, vectors, fingerprint=origin.passage_fingerprint)
        _again(lambda: client.upsert(self.collection, points=points))
        metadata = {"origin": origin.as_json(), "loaded": loaded}
        _again(lambda: client.update_collection(self.collection, metadata=metadata))

    def activate(self) -> None:
        """Point the alias to this collection and delete the previous one."""
        client, models = self.client, _models()
        alias = models.CreateAlias(collection_name=self.collection, alias_name=self.name)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=alias)]
        # Another load may have activated its own collection since this one began.
        before = _again(lambda: _aliased(client, self.name))
        if before is not None:
            gone = models.DeleteAlias(alias_name=self.name)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        # One request for both, so that the alias always resolves.
        _again(lambda: client.update_collection_aliases(change_aliases_operations=operations))
        if before is not None and before["collection"] != self.collection:
            _again(lambda: client.delete_collection(before["collection"]))


def _aliased(client: Any, name: str) -> dict[str, Any] | None:
    """Return the collection and metadata behind an alias, or None.

    Raises:
        VectorsError: If the name is invalid, or taken by a collection that is not ours.
    """
    from qdrant_client.http.exceptions import UnexpectedResponse

    if not _NAME.fullmatch(name):
        raise VectorsError(
            f"Qdrant: expected an index name of 1 to 200 characters without "
            f'< > : " / \\ | ? * or control characters, got {name[:300]!r}'
        )
    while (collection := _target(client, name)) is not None:
        try:
            metadata = client.get_collection(collection).config.metadata or {}
        # Local mode raises a ValueError.
        except (UnexpectedResponse, ValueError):
            if _target(client, name) == collection:
                raise
            # It was exchanged, and deleted, in the meantime.
            continue
        if "origin" not in metadata:
            raise VectorsError(
                f"Qdrant: '{name}' is the alias of a collection that dptdr did not create; "
                "choose a different name"
            )
        return {"collection": collection, **metadata}
    if client.collection_exists(name):
        raise VectorsError(
            f"Qdrant: '{name}' is a collection that dptdr did not create; choose a different name"
        )
    return None


def _target(client: Any, name: str) -> str | None:
    """Return the collection that an alias points to, if any."""
    aliases = client.get_aliases().aliases
    return next((found.collection_name for found in aliases if found.alias_name == name), None)


def _number(origin: Origin) -> str:
    text = json.dumps(origin.as_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _point_id(passage_id: str) -> str:
    # Qdrant accepts only integers and UUIDs as point ids.
    return str(uuid.uuid5(_NAMESPACE, passage_id))


def _points(documents: Iterable[Document], vectors: np.ndarray, *, fingerprint: str) -> list[Any]:
    models = _models()
    return [
        models.PointStruct(
            id=_point_id(passage.id),
            vector=vector.tolist(),
            payload={
                "id": passage.id,
                "title": passage.title,
                "text": passage.text,
                "metadata": dict(metadata),
                # Filters compare strings: numbers and booleans in their JSON form.
                "filter": {_unquoted(field): _texts(value) for field, value in metadata.items()},
                "passage_fingerprint": fingerprint,
            },
        )
        for (passage, metadata), vector in zip(documents, vectors, strict=True)
    ]


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [form for item in items for form in plain_texts(item)]


def _document(payload: dict[str, Any]) -> Document:
    passage = Passage(payload["id"], payload["text"], payload["title"])
    return Document(passage, payload["metadata"])


def _key(field: str) -> str:
    """Return the path of a metadata field in the payload, quoted as it may contain dots."""
    return f'filter."{_unquoted(field)}"'


def _unquoted(field: str) -> str:
    """Replace quotation marks, which no quoted path can have, by a code point of no character."""
    return field.replace('"', "\ufffe")


def _condition(filters: Sequence[Filter]) -> Any:
    models = _models()
    if not filters:
        return None
    return models.Filter(
        must=[
            models.FieldCondition(
                key=_key(condition.field), match=models.MatchAny(any=list(condition.values))
            )
            for condition in filters
        ]
    )


def _again(work: Callable[[], Result]) -> Result:
    """Run a request, retrying if the connection breaks; all requests are idempotent."""
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, _TRIES + 1):
        try:
            return work()
        except UnexpectedResponse as error:
            raise VectorsError(
                f"Qdrant rejected the request ({' '.join(str(error).split())[:300]})"
            ) from None
        except (ResponseHandlingException, ConnectionError) as error:
            if attempt == _TRIES:
                raise VectorsError(
                    f"Qdrant: no response after {_TRIES} tries ({' '.join(str(error).split())}); "
                    "check that it is running and reachable, then retry: completed work is kept"
                ) from None
            time.sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")
