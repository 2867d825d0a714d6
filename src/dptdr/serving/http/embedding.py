"""From texts to vectors: embedding routes compatible with OpenAI and text-embeddings-inference.

Each route is also available under ``/tasks/{task}``, where the path selects the task (and, with
``:query`` or ``:passage``, the side), for clients that cannot choose a model.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from jaxtyping import Float
from starlette.concurrency import run_in_threadpool

from dptdr.serving.engine.results import Encoded
from dptdr.serving.http import schemas
from dptdr.serving.http.access import GuardedRoute, runtime_of
from dptdr.serving.http.dependencies import ResolvedTask, resolve_task
from dptdr.serving.http.errors import ClientDisconnected, Invalid
from dptdr.serving.http.responses import json_response, reply_of
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import BARE

router = APIRouter(route_class=GuardedRoute)


def _named(task: schemas.TaskName) -> None:
    """Declare the task path parameter, which :func:`resolve_task` reads."""
    del task


def _post(path: str, model: Any) -> Callable[[Any], Any]:
    """Return a decorator that registers a route globally and under each task."""

    def add(handler: Any) -> Any:
        replies = reply_of(model)
        router.post(path, responses=replies)(handler)
        address = "/tasks/{task}" + path
        return router.post(address, responses=replies, dependencies=[Depends(_named)])(handler)

    return add


@_post("/v1/embeddings", schemas.EmbeddingsReply)
@_post("/embeddings", schemas.EmbeddingsReply)
async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
    """Encode texts (OpenAI)."""
    texts = checked_texts(request, body.input)
    what = resolve_task(request, body.model, side=body.input_type)
    encoded = await encode(request, what, texts)
    vectors: Any = _shortened(request, encoded, what.version, dimensions=body.dimensions)
    if body.encoding_format == "base64":
        # Little-endian float32, as expected by OpenAI clients.
        vectors = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    tokens = sum(encoded.tokens)
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": vector}
                for place, vector in enumerate(vectors)
            ],
            "model": what.version.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.post("/tasks/{task}", responses=reply_of(None), dependencies=[Depends(_named)])
@_post("/embed", None)
async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
    """Encode texts (text-embeddings-inference and ``InferenceClient``)."""
    vectors = await _vectors(request, body)
    return json_response(normalised(vectors) if body.normalize else vectors)


@_post("/embed_all", None)
async def embed_all(request: Request) -> Response:
    """Reject token-level embeddings, which tasks are not trained for."""
    del request
    raise Invalid(
        "/embed_all: tasks are trained for one vector per text and have no meaningful token "
        "embeddings; use /embed"
    )


@_post("/similarity", None)
async def similarity(body: schemas.SimilarityRequest, request: Request) -> Response:
    """Compute the cosine similarity of one text to each of several others."""
    options = body.parameters or schemas.SimilarityParameters()
    vectors = await _vectors(
        request,
        schemas.EmbedRequest(
            inputs=[body.inputs.source_sentence, *body.inputs.sentences],
            truncate=options.truncate,
            truncation_direction=options.truncation_direction,
            prompt_name=options.prompt_name,
            task=body.task,
        ),
    )
    made = normalised(vectors)
    return json_response(made[1:] @ made[0])


@_post("/tokenize", list[list[schemas.Token]])
async def tokenize(body: schemas.TokenizeRequest, request: Request) -> Response:
    """Tokenize texts without truncation."""
    texts = checked_texts(request, body.inputs)
    what = resolve_task(request, body.task, side=body.prompt_name)
    forward = runtime_of(request).registry.forward
    found = await run_in_threadpool(
        forward.tokens, texts, side=what.side, special=body.add_special_tokens
    )
    return json_response([_tokens(encoding) for encoding in found])


def _tokens(encoding: Any) -> list[dict[str, Any]]:
    parts = (encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets)
    return [
        {
            "id": number,
            "text": text,
            "special": bool(special),
            "start": None if special else start,
            "stop": None if special else stop,
        }
        for number, text, special, (start, stop) in zip(*parts, strict=True)
    ]


async def _vectors(request: Request, body: schemas.EmbedRequest) -> Float[np.ndarray, "texts dim"]:
    texts = checked_texts(request, body.inputs)
    what = resolve_task(request, body.task, side=body.prompt_name)
    if not body.truncate:
        await run_in_threadpool(_refuse_long, request, texts, what)
    keep_end = body.truncation_direction.lower() == "left"
    encoded = await encode(request, what, texts, keep_end=keep_end)
    return _shortened(request, encoded, what.version, dimensions=body.dimensions)


def _refuse_long(request: Request, texts: list[str], what: ResolvedTask) -> None:
    forward = runtime_of(request).registry.forward
    limit = min(what.version.limits.of(what.side), forward.backbone.pooling.max_tokens)
    for number, encoding in enumerate(forward.tokens(texts, side=what.side)):
        if len(encoding.ids) > limit:
            raise Invalid(
                f"text {number}: expected at most {limit} tokens with truncate=false, got "
                f"{len(encoding.ids):,}; split the text, or set truncate=true"
            )


def checked_texts(request: Request, given: schemas.Texts) -> list[str]:
    """Validate the texts of a request, decoding token ids.

    Raises:
        Invalid: If there are too many texts, or one is too long or not valid Unicode.
    """
    settings = runtime_of(request).settings
    rows: list[Any] = given if isinstance(given, list) else [given]
    if rows and isinstance(rows[0], int):
        rows = [rows]
    if not rows or len(rows) > settings.max_texts:
        raise Invalid(f"expected 1 to {settings.max_texts:,} texts, got {len(rows):,}")
    texts = rows if isinstance(rows[0], str) else _decoded(request, rows)
    for number, text in enumerate(texts):
        if len(text) > settings.max_text_characters:
            raise Invalid(
                f"text {number}: expected at most {settings.max_text_characters:,} characters, "
                f"got {len(text):,}; split it into passages"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Invalid(f"text {number}: expected valid Unicode, got a lone surrogate") from None
    request.scope["dptdr_facts"]["texts"] = len(texts)
    return texts


def _decoded(request: Request, rows: list[list[int]]) -> list[str]:
    """Decode token ids, as sent by OpenAI clients.

    Raises:
        Invalid: If the ids do not match this tokenizer.
    """
    texts = runtime_of(request).registry.forward.decode(rows)
    if texts is None:
        raise Invalid(
            "these token ids do not match this encoder's tokenizer; send text instead (for "
            "LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False)"
        )
    return texts


async def encode(
    request: Request, what: ResolvedTask, texts: list[str], *, keep_end: bool = False
) -> Encoded:
    """Encode texts, stopping early if the client disconnects.

    Args:
        request: The request, whose body has been read.
        keep_end: Truncate long texts at the start instead of the end.

    Raises:
        DptdrError: If the queue is full, the request times out or a text cannot be encoded.
        ClientDisconnected: If the client disconnects.
    """
    runtime = runtime_of(request)
    future = runtime.engine.submit(
        texts,
        version=what.version,
        side=what.side,
        timeout_seconds=runtime.settings.timeout_seconds,
        keep_end=keep_end,
    )
    answer: asyncio.Future[Encoded] = asyncio.wrap_future(future)
    gone = asyncio.create_task(_disconnected(request))
    both: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise ClientDisconnected("the client disconnected")
        encoded = answer.result()
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    runtime.metrics.saw_answer(what.version.task, encoded)
    request.scope["dptdr_facts"]["tokens"] = sum(encoded.tokens)
    return encoded


async def _disconnected(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shortened(
    request: Request, encoded: Encoded, version: TaskVersion, *, dimensions: int | None
) -> Float[np.ndarray, "texts dimensions"]:
    """Truncate vectors to their leading dimensions, if the task was trained for it.

    As in training, they are rescaled to unit length only if the encoder normalises its vectors.

    Raises:
        Invalid: If the task was not trained for this dimension.
    """
    vectors, full = encoded.vectors, encoded.vectors.shape[1]
    if dimensions is None or dimensions == full:
        return vectors
    trained = version.manifest.training.get("matryoshka") if version.manifest else None
    allowed = sorted(trained or [])
    if dimensions not in allowed:
        name = "the bare backbone" if version.task == BARE else f"task '{version.name}'"
        raise Invalid(
            f"dimensions: {name} supports {full}"
            + (f" and {allowed}" if allowed else "")
            + f", got {dimensions}; train with --matryoshka for shorter vectors"
        )
    short = vectors[:, :dimensions]
    return normalised(short) if runtime_of(request).registry.backbone.pooling.normalise else short


def normalised(vectors: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, "texts dim"]:
    """Normalise vectors to unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(np.float32)
