"""Task, side, limits and vectors of a request."""

import asyncio
import contextlib
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from jaxtyping import Float

from dptdr.model.backbone import Side
from dptdr.serving.engine.requests import Encoded
from dptdr.serving.http import schemas
from dptdr.serving.http.access import key_of, reach, runtime_of
from dptdr.serving.http.errors import ClientDisconnected, Invalid
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import BARE


class Asked(NamedTuple):
    """The task's version and the side that a request means."""

    version: TaskVersion
    side: Side


SIDES: dict[str, Side] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
}
"""What clients call the two sides."""


def asked(request: Request, model: str | None, *, side: str | None = None) -> Asked:
    """Return the task and side of a request, and count it against the task's rate.

    A task in the address decides; clients that cannot name a task send any model there. Without
    any name the one task that the key reaches is meant, never the bare backbone.

    Args:
        request: The request.
        model: ``task`` or ``task@version``, each with ``:query`` or ``:passage``.
        side: The side, where another field says it.

    Raises:
        DptdrError: If the name is unknown or says too little, or the key or a rate forbids it.
    """
    runtime = runtime_of(request)
    addressed = request.path_params.get("task")
    name, word = _split(addressed or model or _only_task(request))
    if addressed and model is not None and not word:
        # Of a model that means nothing here, only a side counts.
        word = model.rpartition(":")[2] if model.rpartition(":")[2] in SIDES else ""
    task = reach(request, name)
    version = runtime.registry.resolve(name)
    said = {SIDES[given] for given in (word, side) if given}
    if len(said) > 1:
        raise Invalid(f"the request says both 'query' and 'passage' of task '{name[:100]}'")
    meant = said.pop() if said else _either_side(request, version)
    runtime.rates.take(
        ("task", version.task),
        per_second=runtime.settings.task_requests_per_second,
        what=f"clients of task '{task}'",
    )
    request.scope["dptdr_facts"].update(task=version.name, side=meant)
    return Asked(version, meant)


def _split(model: str) -> tuple[str, str]:
    name, colon, word = model.partition(":")
    if colon and word not in SIDES:
        raise Invalid(
            f"model '{model[:100]}': expected 'task:query' or 'task:passage' after the colon"
        )
    return name, word


def _only_task(request: Request) -> str:
    """Return the task that a request without one means.

    Raises:
        Invalid: If there is none, or more than one.
    """
    runtime = runtime_of(request)
    key = key_of(request)
    served = runtime.registry.tasks()
    names = sorted(name for name in served if key.reaches(name))
    if len(names) == 1:
        return names[0]
    if runtime.bare_only and not served:
        return BARE
    listed = ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")
    raise Invalid(
        f"the request names no task and there are {len(names)}: name one of {listed or 'none'}, or "
        f"'{BARE}' for the bare encoder, or use the address /tasks/NAME/..."
    )


def _either_side(request: Request, version: TaskVersion) -> Side:
    """Return the default side of a task whose sides give the same vectors.

    Raises:
        Invalid: If they do not: the side cannot be guessed.
    """
    pooling = runtime_of(request).registry.backbone.pooling
    same = version.prompts["query"] == version.prompts["passage"]
    if not same or pooling.query_prefix != pooling.passage_prefix:
        name = version.task
        raise Invalid(
            f"task '{name}' encodes queries and passages differently: name '{name}:query' or "
            f"'{name}:passage', or say it in 'input_type' or 'prompt_name', or use the addresses "
            f"/tasks/{name}:query and /tasks/{name}:passage"
        )
    # The longer limit, so that no passage is cut where a query would be.
    limits = version.limits
    return "query" if limits.max_query_tokens > limits.max_passage_tokens else "passage"


def checked_texts(request: Request, given: schemas.Texts) -> list[str]:
    """Return the texts of a request within the limits; token ids are decoded.

    Raises:
        Invalid: If there are too many, one is too long, or one is no Unicode text.
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
            raise Invalid(f"text {number}: expected Unicode, got a lone surrogate") from None
    request.scope["dptdr_facts"]["texts"] = len(texts)
    return texts


def _decoded(request: Request, rows: list[list[int]]) -> list[str]:
    """Return the texts of token ids, as OpenAI's clients send them.

    Raises:
        Invalid: If an id is not in the tokenizer, or the ids are those of another one.
    """
    texts = runtime_of(request).registry.forward.decode(rows)
    if texts is None:
        raise Invalid(
            "token ids that this encoder's tokenizer does not know, or would cut otherwise: send "
            "texts; in LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False"
        )
    return texts


async def encode(
    request: Request, what: Asked, texts: list[str], *, keep_end: bool = False
) -> Encoded:
    """Return the vectors of texts; stop if the client disconnects.

    Args:
        request: The request; its body has been read.
        what: Task and side.
        texts: The texts.
        keep_end: Whether long texts lose their beginning instead of their end.

    Raises:
        DptdrError: If the queue is full, the time runs out or a text cannot be encoded.
        ClientDisconnected: If the client went away.
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
            raise ClientDisconnected("the client went away")
        encoded = answer.result()
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    runtime.metrics.saw_answer(what.version.task, encoded)
    request.scope["dptdr_facts"]["tokens"] = sum(encoded.tokens)
    return encoded


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def shortened(
    vectors: Float[np.ndarray, "texts dim"], *, version: TaskVersion, dimensions: int | None
) -> Float[np.ndarray, "texts dimensions"]:
    """Return the first dimensions of vectors, scaled to length 1, if the task supports it.

    Raises:
        Invalid: If the task was not trained for that length.
    """
    full = vectors.shape[1]
    if dimensions is None or dimensions == full:
        return vectors
    trained = version.manifest.training.get("matryoshka") if version.manifest else None
    allowed = sorted(trained or [])
    if dimensions not in allowed:
        name = "the bare backbone" if version.task == BARE else f"task '{version.name}'"
        raise Invalid(
            f"dimensions: {name} has vectors of {full} numbers"
            + (f" and was trained for {allowed} as well" if allowed else "")
            + f", got {dimensions}; train with --matryoshka for shorter ones"
        )
    return normalised(vectors[:, :dimensions])


def normalised(vectors: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, "texts dim"]:
    """Return vectors of length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(np.float32)
