"""What a server answers: vectors and hits."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

import dptdr
from dptdr.search.vectors.documents import Filter
from dptdr.serving.http import schemas
from dptdr.serving.http.dependencies import (
    ClientDisconnected,
    asked,
    checked_texts,
    demand,
    encode,
    key_of,
    normalised,
    runtime_of,
    shortened,
)
from dptdr.serving.http.errors import Invalid, problem
from dptdr.serving.http.page import PAGE
from dptdr.serving.http.responses import as_base64, json_response
from dptdr.serving.searching import answer
from dptdr.serving.tasks.registry import BARE

_STATUSES = (400, 401, 403, 404, 409, 413, 422, 429, 503, 504)


def reply_of(model: type | None, *, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the replies of a route for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        code: {"model": schemas.ProblemReply} for code in _STATUSES
    }
    found[status] = {"model": model} if model is not None else {}
    return found


router = APIRouter()


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
    key = demand(request, "use")
    registry, settings = runtime.registry, runtime.settings
    return json_response(
        {
            "model_id": registry.backbone.name,
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
            "indexes": [served.name for served in runtime.searcher.indexes],
            "hybrid": settings.hybrid,
            "keys": not runtime.keyring.open,
            "version": dptdr.__version__,
        }
    )


@router.get("/metrics", responses=reply_of(None), response_class=Response)
async def metrics(request: Request) -> Response:
    """Return Prometheus metrics, of all workers together."""
    runtime = runtime_of(request)
    demand(request, "use")
    registry = runtime.registry
    runtime.metrics.tasks.set(len(registry.tasks()))
    runtime.metrics.prompt_bytes.set(registry.hot.bytes)
    runtime.metrics.queue_tokens.set(runtime.engine.waiting_tokens)
    text = await run_in_threadpool(runtime.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", responses=reply_of(schemas.ModelList))
async def models(request: Request) -> Response:
    """List the tasks as OpenAI lists models."""
    key = key_of(request)
    names = [BARE, *sorted(runtime_of(request).registry.tasks())]
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "dptdr"}
        for name in names
        if key.reaches(name)
    ]
    return json_response({"object": "list", "data": data})


@router.post("/v1/embeddings", responses=reply_of(schemas.EmbeddingsReply))
async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
    """Encode texts, as OpenAI's clients ask for it."""
    texts = checked_texts(request, body.input)
    what = asked(request, body.model)
    encoded = await encode(request, what, texts)
    vectors = shortened(encoded.vectors, version=what.version, dimensions=body.dimensions)
    wanted = as_base64 if body.encoding_format == "base64" else None
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": vector if wanted is None else wanted(vector),
        }
        for place, vector in enumerate(vectors)
    ]
    tokens = sum(encoded.tokens)
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": what.version.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.post("/embed", responses=reply_of(None))
async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
    """Encode texts, as clients of text-embeddings-inference ask for it."""
    texts = checked_texts(request, body.inputs)
    what = asked(request, body.task or BARE, side=body.prompt_name)
    if not body.truncate:
        _refuse_long(request, texts, limit=what.version.limits.of(what.side))
    encoded = await encode(request, what, texts)
    vectors = shortened(encoded.vectors, version=what.version, dimensions=body.dimensions)
    return json_response(normalised(vectors) if body.normalize else vectors)


def _refuse_long(request: Request, texts: list[str], *, limit: int) -> None:
    forward = runtime_of(request).registry.forward
    for number, text in enumerate(texts):
        # One token more than allowed is enough to know.
        tokens = len(forward.tokenize([text], side="query", max_tokens=limit + 1)[0])
        most = forward.backbone.pooling.max_tokens
        if tokens > limit or (limit == most and tokens == most):
            raise Invalid(
                f"text {number}: expected fewer than {limit} tokens with truncate=false; split "
                "the text, or allow truncation"
            )


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
    from dptdr.errors import VectorsError

    try:
        return [Filter.parse(condition) for condition in given]
    except VectorsError as error:
        raise Invalid(f"filters: {error}") from None


async def hung_up(request: Request, error: Exception) -> Response:
    """Return what nobody will read, for the log."""
    assert isinstance(error, ClientDisconnected)
    return problem(499, "hung_up", "the client went away", request=request)
