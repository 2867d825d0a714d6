"""What a server says of itself, and hits."""

import time
from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

import dptdr
from dptdr.errors import VectorsError
from dptdr.search.vectors.documents import Filter
from dptdr.serving.http import schemas
from dptdr.serving.http.access import GuardedRoute, key_of, runtime_of
from dptdr.serving.http.auth import Key
from dptdr.serving.http.dependencies import SIDES, ClientDisconnected, asked, checked_texts, encode
from dptdr.serving.http.errors import Invalid, problem
from dptdr.serving.http.page import PAGE
from dptdr.serving.http.responses import json_response, reply_of
from dptdr.serving.runtime import Runtime
from dptdr.serving.searching import answer
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import BARE, UnknownTask

router = APIRouter(route_class=GuardedRoute)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Return the search page."""
    return HTMLResponse(
        PAGE,
        headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.get("/health", responses=reply_of(schemas.Health))
async def health(request: Request) -> Response:
    """Answer 200 once texts are encoded; 503 while starting or draining."""
    runtime = runtime_of(request)
    if runtime.ready:
        return json_response({"status": "ok"})
    word = "draining" if runtime.draining else "starting"
    reply = problem(503, "not_ready", f"the server is {word}", request=request)
    reply.headers["Retry-After"] = "1"
    return reply


@router.get("/info", responses=reply_of(schemas.Info))
async def info(request: Request) -> Response:
    """Say what this server is, as text-embeddings-inference does."""
    runtime = runtime_of(request)
    key = key_of(request)
    registry, settings = runtime.registry, runtime.settings
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
            "indexes": _index_names(runtime, key),
            "bare_searchable": key.reaches(BARE) and _searchable(runtime, registry.bare),
            "hybrid": settings.hybrid,
            "keys": not runtime.keyring.open,
            "version": dptdr.__version__,
        }
    )


def _index_names(runtime: Runtime, key: Key) -> list[str]:
    """Return the indexes that a task within the key's reach can search."""
    registry = runtime.registry
    versions = [
        version
        for name, task in registry.tasks().items()
        if key.reaches(name)
        for version in task.versions.values()
    ]
    if key.reaches(BARE):
        versions.append(registry.bare)
    return [
        served.name
        for served in runtime.searcher.indexes
        if any(served.fits(version) for version in versions)
    ]


def _searchable(runtime: Runtime, version: TaskVersion) -> bool:
    return any(served.fits(version) for served in runtime.searcher.indexes)


@router.get("/metrics", responses=reply_of(None), response_class=Response)
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics of all workers together; a limited key sees its tasks alone."""
    runtime = runtime_of(request)
    key = key_of(request)
    registry = runtime.registry
    runtime.metrics.tasks.set(len(registry.tasks()))
    runtime.metrics.prompt_bytes.set(registry.hot.bytes)
    runtime.metrics.queue_tokens.set(runtime.engine.waiting_tokens)
    names = {BARE, *registry.tasks()}
    mine = {name for name in names if key.reaches(name)}
    text = await run_in_threadpool(
        runtime.metrics.text, existing=names, shown=mine, all_shown=key.reaches_all
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", responses=reply_of(schemas.ModelList))
async def models(request: Request) -> Response:
    """List the tasks as OpenAI lists models."""
    key = key_of(request)
    names = [BARE, *sorted(runtime_of(request).registry.tasks())]
    data = [_model(name) for name in names if key.reaches(name)]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model}", responses=reply_of(schemas.Model))
async def one_model(model: schemas.TaskName, request: Request) -> Response:
    """Describe a task as OpenAI describes a model."""
    name, colon, side = model.partition(":")
    if colon and side not in SIDES:
        raise UnknownTask(f"unknown task '{model[:100]}'; see /v1/tasks")
    runtime_of(request).registry.resolve(name)
    return json_response(_model(model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "dptdr"}


@router.post("/v1/search", responses=reply_of(schemas.SearchReply))
async def search(body: schemas.SearchRequest, request: Request) -> Response:
    """Search the index of a task."""
    runtime = runtime_of(request)
    (text,) = checked_texts(request, body.text)
    if body.k > runtime.settings.max_hits:
        raise Invalid(f"k: expected 1 to {runtime.settings.max_hits:,}, got {body.k:,}")
    filters = _filters(body.filters)
    what = asked(request, body.task, side="query")
    served = runtime.searcher.find(what.version)
    began = time.perf_counter()
    encoded = await encode(request, what, [text])
    encode_seconds = time.perf_counter() - began
    found = await run_in_threadpool(
        answer,
        served,
        encoded.vectors[0],
        text=text,
        depth=body.k,
        mode=body.mode,
        filters=filters,
    )
    return json_response(
        {
            "task": what.version.name,
            "index": found.source,
            "mode": body.mode,
            "hits": [hit._asdict() for hit in found.hits],
            "encode_milliseconds": round(encode_seconds * 1000, 2),
            "search_milliseconds": round(found.search_seconds * 1000, 2),
        }
    )


def _filters(given: list[str]) -> list[Filter]:
    try:
        return [Filter.parse(condition) for condition in given]
    except VectorsError as error:
        raise Invalid(f"filters: {error}") from None


async def hung_up(request: Request, error: Exception) -> Response:
    """Return what nobody will read, for the log."""
    assert isinstance(error, ClientDisconnected)
    return problem(499, "hung_up", "the client went away", request=request)
