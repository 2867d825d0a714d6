"""Around every request: an id, limits on its size and time, a log line, a number in the metrics."""

import asyncio
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dptdr.serving.http.access import foreign
from dptdr.serving.http.responses import json_response
from dptdr.serving.metrics import Metrics

_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")


def make_logger(stream: Any = None) -> Any:
    """Return a logger that writes one JSON object per line, to standard error by default."""
    return structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )


class Surroundings:
    """Pure ASGI: costs microseconds and streams what it does not have to hold.

    Args:
        app: The application.
        metrics: Where requests are counted.
        max_body_bytes: Longest body.
        receive_seconds: How long a client may take to send its body.
        hosts: Names of an open server, where browsers of other sites must be refused; ``None`` with
            keys, which no foreign page has.
        logger: Takes one event per request; never a text of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body_bytes: int,
        receive_seconds: float,
        hosts: frozenset[str] | None,
        logger: Any,
    ) -> None:
        self.app = app
        self.receive_seconds = receive_seconds
        self.hosts = hosts
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        identifier = _identifier(scope)
        scope["dptdr_request_id"] = identifier
        # What handlers want to see in the log: task, texts, tokens, key; never texts.
        facts: dict[str, Any] = {}
        scope["dptdr_facts"] = facts
        status = 499

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", identifier.encode()),
                ]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is not None:
                refusal_status, kind, why = refused
                reply = json_response(_error(kind, why, identifier), status=refusal_status)
                # What follows on this connection cannot be told from the refused body.
                reply.headers["Connection"] = "close"
                await reply(scope, receive, answer)
            else:
                await self.app(scope, self._limited(receive), answer)
        except Exception as error:
            facts["error"] = "".join(traceback.format_exception_only(error)).strip()[:500]
            facts["trace"] = "".join(traceback.format_tb(error.__traceback__)[-6:])
            if status == 499:
                # The outside gets only the number by which the log is found.
                message = "the server failed; its log says why"
                reply = json_response(_error("bug", message, identifier), status=500)
                await reply(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, str(status)).inc()
            _log_of(self.logger, route, status)(
                "request",
                request_id=identifier,
                method=scope["method"],
                route=route,
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
                **facts,
            )

    def _refused(self, scope: Scope) -> tuple[int, str, str] | None:
        """Return status, kind and message where a request is refused by its headers alone."""
        names = [name for name, _ in scope["headers"]]
        if b"content-length" in names and b"transfer-encoding" in names:
            why = "expected Content-Length or Transfer-Encoding, got both"
            return 400, "unreadable", why
        if self.hosts is not None:
            why = foreign(scope["method"], scope["headers"], hosts=self.hosts)
            if why:
                return 403, "foreign", why
        announced = _content_length(scope)
        if announced is not None and announced > self.max_body_bytes:
            return 413, "too_large", too_large(self.max_body_bytes)
        return None

    def _limited(self, receive: Receive) -> Callable[[], Any]:
        """Return ``receive`` that stops a body which is too long, or comes too slowly."""
        seen = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self.receive_seconds

        async def limited() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                # The framework lets these pass where it would turn others into status 400.
                why = f"expected the whole body within {self.receive_seconds:g} seconds"
                raise HTTPException(408, why, headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                seen += len(message.get("body", b""))
                if seen > self.max_body_bytes:
                    why = too_large(self.max_body_bytes)
                    raise HTTPException(413, why, headers={"Connection": "close"})
            return message

        return limited


def _log_of(logger: Any, route: str, status: int) -> Callable[..., Any]:
    """Return how loud a request is: bugs are errors, probes of balancers are whispered."""
    if status == 500:
        return logger.error  # type: ignore[no-any-return]
    quiet = route in ("/health", "/metrics")
    return logger.debug if quiet else logger.info  # type: ignore[no-any-return]


def too_large(limit: int) -> str:
    """Return what is said to a body that is too long."""
    return f"expected a body of at most {limit:,} bytes; send fewer texts"


def _error(kind: str, message: str, identifier: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "request_id": identifier}}


def _identifier(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _IDENTIFIER.fullmatch(given):
                return str(given)
    return uuid.uuid4().hex


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None
