"""From a request to vectors: whose key, which task, which side, within which limits."""

import asyncio
import contextlib
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from jaxtyping import Float

from dptdr.model.backbone import Side
from dptdr.serving.engine.requests import Encoded
from dptdr.serving.http.auth import Key, Scope
from dptdr.serving.http.errors import Invalid
from dptdr.serving.runtime import Runtime
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import BARE


class ClientDisconnected(Exception):
    """The client went away; nobody reads an answer."""


class Asked(NamedTuple):
    """A request whose key and rates have been checked.

    Args:
        version: The task's version.
        side: Query or passage.
        key: Whose request it is.
    """

    version: TaskVersion
    side: Side
    key: Key


def runtime_of(request: Request) -> Runtime:
    """Return the worker's runtime."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def key_of(request: Request) -> Key:
    """Return what the request's key allows.

    Raises:
        Unauthorized: If a key is needed and there is none.
    """
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    given = secret.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key")
    key = runtime_of(request).keyring.find(given or None)
    request.scope["dptdr_facts"]["key"] = key.name
    return key


def demand(request: Request, scope: Scope, task: str | None = None) -> Key:
    """Return the request's key if it allows something.

    Raises:
        Unauthorized: If a key is needed and there is none.
        Forbidden: If it does not reach that far.
    """
    key = key_of(request)
    key.demand(scope, task)
    return key


def asked(request: Request, model: str, *, side: Side | None = None) -> Asked:
    """Find out which task and side a request means, and count it against the rates.

    Args:
        request: The request.
        model: ``task``, ``task@version``, each with ``:query`` or ``:passage``.
        side: The side, where it stands elsewhere.

    Returns:
        What was asked.

    Raises:
        DptdrError: If the key, the name or a rate forbids it.
    """
    runtime = runtime_of(request)
    name, colon, word = model.partition(":")
    if colon and word not in ("query", "passage"):
        raise Invalid(
            f"model '{model[:100]}': expected 'task:query' or 'task:passage' after the colon"
        )
    meant: Side = side or ("passage" if word == "passage" else "query")
    key = demand(request, "use", name.partition("@")[0])
    version = runtime.registry.resolve(name)
    settings = runtime.settings
    own = key.requests_per_second
    runtime.rates.take(
        ("key", key.name),
        per_second=settings.requests_per_second if own is None else own,
        what=f"the key '{key.name}'",
    )
    runtime.rates.take(
        ("task", version.task),
        per_second=settings.task_requests_per_second,
        what=f"clients of task '{version.task}'",
    )
    request.scope["dptdr_facts"].update(task=version.name, side=meant)
    return Asked(version, meant, key)


def checked_texts(request: Request, given: str | list[str]) -> list[str]:
    """Return the texts of a request if they are within the limits.

    Raises:
        Invalid: If there are too many, one is too long, or one is no Unicode text.
    """
    settings = runtime_of(request).settings
    texts = [given] if isinstance(given, str) else given
    if not texts or len(texts) > settings.max_texts:
        raise Invalid(f"expected 1 to {settings.max_texts:,} texts, got {len(texts):,}")
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


async def encode(request: Request, what: Asked, texts: list[str]) -> Encoded:
    """Return the vectors of texts; give up if the client hangs up.

    Args:
        request: The request; its body has been read.
        what: Task and side.
        texts: The texts.

    Returns:
        The vectors.

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
    )
    answer: asyncio.Future[Encoded] = asyncio.wrap_future(future)
    gone = asyncio.create_task(_gone(request))
    both: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise ClientDisconnected
        encoded = answer.result()
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    _count(request, what, encoded)
    return encoded


async def _gone(request: Request) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _count(request: Request, what: Asked, encoded: Encoded) -> None:
    metrics = runtime_of(request).metrics
    name = what.version.task
    tokens = sum(encoded.tokens)
    metrics.task_requests.labels(name).inc()
    metrics.task_texts.labels(name).inc(len(encoded.tokens))
    metrics.task_tokens.labels(name).inc(tokens)
    metrics.task_seconds.labels(name).observe(encoded.seconds)
    metrics.wait_seconds.observe(encoded.waited_seconds)
    request.scope["dptdr_facts"]["tokens"] = tokens


def shortened(
    vectors: Float[np.ndarray, "texts dim"], *, version: TaskVersion, dimensions: int | None
) -> Float[np.ndarray, "texts dimensions"]:
    """Return the first numbers of vectors, scaled to length 1, where the task allows that.

    Args:
        vectors: Full vectors.
        version: Whose vectors.
        dimensions: Wanted length; none or the full one changes nothing.

    Returns:
        The vectors.

    Raises:
        Invalid: If the task was not trained for that length.
    """
    full = vectors.shape[1]
    if dimensions is None or dimensions == full:
        return vectors
    trained = version.manifest.training.get("matryoshka") if version.manifest else None
    allowed = [int(length) for length in trained or []]
    if dimensions not in allowed:
        name = "the bare backbone" if version.task == BARE else f"task '{version.name}'"
        raise Invalid(
            f"dimensions: {name} has vectors of {full} numbers"
            + (f" and was trained for {sorted(allowed)} besides" if allowed else "")
            + f", got {dimensions}; train with --matryoshka for shorter ones"
        )
    return normalised(vectors[:, :dimensions])


def normalised(vectors: Float[np.ndarray, "texts dim"]) -> Float[np.ndarray, "texts dim"]:
    """Return vectors of length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(np.float32)
