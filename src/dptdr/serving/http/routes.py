"""Routes for server status, search and re-ranking."""

import time
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

import dptdr
from dptdr.errors import ServingError, VectorsError
from dptdr.search.vectors.documents import Filter
from dptdr.serving.auth import Key
from dptdr.serving.engine.batching import QueueFull
from dptdr.serving.engine.results import Draining
from dptdr.serving.http import schemas
from dptdr.serving.http.access import GuardedRoute, key_of, runtime_of
from dptdr.serving.http.dependencies import SIDES, resolve_task
from dptdr.serving.http.embedding import checked_texts, encode
from dptdr.serving.http.errors import Invalid
from dptdr.serving.http.responses import json_response, reply_of
from dptdr.serving.runtime import Runtime
from dptdr.serving.searching import ServedIndex
from dptdr.serving.tasks.registry import BARE, UnknownTask

router = APIRouter(route_class=GuardedRoute)

_HERE = Path(__file__).parent
_PAGES = {name: (_HERE / f"{name}.html").read_text(encoding="utf-8") for name in ("page", "docs")}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_MAX_RERANKING = 8
"""Maximum requests queued for the cross-encoder before responding with 429."""


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Return the search page."""
    return HTMLResponse(_PAGES["page"], headers=_PAGE_HEADERS)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Return the API documentation page."""
    return HTMLResponse(_PAGES["docs"], headers=_PAGE_HEADERS)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """Describe all routes in OpenAPI format."""
    return json_response(request.app.openapi())


@router.get("/health", responses=reply_of(schemas.Health))
async def health(request: Request) -> Response:
    """Return 200 when ready, 503 while starting or draining."""
    runtime = runtime_of(request)
    if runtime.ready:
        return json_response({"status": "ok"})
    raise Draining(f"the server is {'draining' if runtime.draining else 'starting'}")


@router.get("/info", responses=reply_of(schemas.Info))
async def info(request: Request) -> Response:
    """Describe this server in the format of text-embeddings-inference."""
    runtime = runtime_of(request)
    key = key_of(request)
    registry, settings = runtime.registry, runtime.settings
    indexes = _indexes(runtime, key)
    return json_response(
        {
            "model_id": PurePath(registry.backbone.name).name,
            "model_sha": registry.backbone.fingerprint,
            "model_dtype": "float32",
            "max_input_length": registry.bare.limits.max_passage_tokens,
            "max_batch_tokens": settings.batch_tokens,
            "max_client_batch_size": settings.max_texts,
            "max_request_tokens": settings.max_tokens,
            "max_concurrent_tokens": settings.queue_tokens,
            "dim": registry.backbone.dim,
            "layout": registry.forward.layout,
            "tasks": sum(key.reaches(name) for name in registry.tasks()),
            "indexes": [served.name for served in indexes],
            "bare_searchable": key.reaches(BARE)
            and registry.indexes.of(registry.bare, shared=key.reaches_all) is not None,
            "hybrid": any(served.lexical is not None for served in indexes),
            "rerank": runtime.scorer is not None,
            "keys": not runtime.keyring.open,
            "version": dptdr.__version__,
        }
    )


def _indexes(runtime: Runtime, key: Key) -> list[ServedIndex]:
    """Return the indexes of tasks covered by the key."""
    registry = runtime.registry
    versions = [registry.bare] if key.reaches(BARE) else []
    for name, task in registry.tasks().items():
        if key.reaches(name):
            versions += task.versions.values()
    searched = [registry.indexes.of(version, shared=key.reaches_all) for version in versions]
    given = registry.indexes.given
    found = {id(served): served for served in searched if served is not None}
    return sorted(found.values(), key=lambda s: given.index(s) if s in given else len(given))


@router.get("/metrics", responses=reply_of(None), response_class=Response)
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics of all workers; a restricted key sees only its own tasks."""
    runtime = runtime_of(request)
    key = key_of(request)
    registry = runtime.registry
    runtime.metrics.tasks.set(len(registry.tasks()))
    runtime.metrics.prompt_bytes.set(registry.hot.bytes)
    runtime.metrics.queue_tokens.set(runtime.engine.waiting_tokens)
    names = {BARE, *registry.tasks()}
    text = await run_in_threadpool(
        runtime.metrics.text,
        existing=names,
        shown={name for name in names if key.reaches(name)},
        all_shown=key.reaches_all,
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", responses=reply_of(schemas.ModelList))
async def models(request: Request) -> Response:
    """List tasks in the format of OpenAI's model list."""
    key = key_of(request)
    names = [BARE, *sorted(runtime_of(request).registry.tasks())]
    data = [_model(name) for name in names if key.reaches(name)]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model}", responses=reply_of(schemas.Model))
async def one_model(model: schemas.TaskName, request: Request) -> Response:
    """Describe a task in the format of an OpenAI model."""
    name, colon, side = model.partition(":")
    if colon and side not in SIDES:
        raise UnknownTask(f"unknown task '{model[:100]}'; see /v1/tasks")
    runtime_of(request).registry.resolve(name)
    return json_response(_model(model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "dptdr"}


@router.post("/v1/search", responses=reply_of(schemas.SearchReply))
async def search(body: schemas.SearchRequest, request: Request) -> Response:
    """Search a task's index."""
    runtime = runtime_of(request)
    (text,) = checked_texts(request, body.text)
    if body.k > runtime.settings.max_hits:
        raise Invalid(f"k: expected 1 to {runtime.settings.max_hits:,}, got {body.k:,}")
    if body.fusion is not None and body.mode == "dense":
        raise Invalid("fusion: expected mode 'hybrid', got 'dense'")
    try:
        filters = [Filter.parse(condition) for condition in body.filters]
    except VectorsError as error:
        raise Invalid(f"filters: {error}") from None
    what = resolve_task(request, body.task, side="query")
    # Query vector and index come from the same version, even if it is replaced meanwhile.
    served = runtime.registry.indexes.find(what.version, shared=key_of(request).reaches_all)
    began = time.perf_counter()
    encoded = await encode(request, what, [text])
    searching = time.perf_counter()
    hybrid = body.mode == "hybrid" or body.fusion is not None
    hits = await run_in_threadpool(
        served.search,
        encoded.vectors[0],
        depth=body.k,
        text=text,
        fusion=(body.fusion or "rrf") if hybrid else None,
        filters=filters,
    )
    return json_response(
        {
            "task": what.version.name,
            "index": served.name,
            "mode": "hybrid" if hybrid else "dense",
            "hits": [hit._asdict() for hit in hits],
            "encode_milliseconds": round((searching - began) * 1000, 2),
            "search_milliseconds": round((time.perf_counter() - searching) * 1000, 2),
        }
    )


@router.post("/rerank", responses=reply_of(list[schemas.Ranked]))
async def rerank(body: schemas.RerankRequest, request: Request) -> Response:
    """Score texts against a query with the cross-encoder (text-embeddings-inference)."""
    runtime = runtime_of(request)
    scorer = runtime.scorer
    if scorer is None:
        raise ServingError("this server has no cross-encoder; start it with --cross-encoder NAME")
    (query,) = checked_texts(request, [body.query])
    texts = checked_texts(request, body.texts)
    if runtime.reranking >= _MAX_RERANKING:
        raise QueueFull(
            f"{_MAX_RERANKING} requests already wait for the cross-encoder; try again later",
            retry_after_seconds=1.0,
        )
    runtime.reranking += 1

    def work() -> Any:
        with runtime.scorer_lock:
            return scorer(query, texts)

    try:
        scores = await run_in_threadpool(work)
    finally:
        runtime.reranking -= 1
    logits = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(logits) != len(texts) or not np.isfinite(logits).all():
        raise ServingError("the cross-encoder did not return one finite score per text")
    values = logits if body.raw_scores else np.exp(-np.logaddexp(0, -logits))
    ranked = [
        {"index": int(place), "score": float(values[place])}
        | ({"text": texts[place]} if body.return_text else {})
        for place in np.argsort(-logits, kind="stable")
    ]
    return json_response(ranked)
