"""Around every request: an id, a limit on its size, a line in the log, a number in the metrics."""

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
        logger: Takes one event per request; never a text of it.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int, logger: Any) -> None:
        self.app = app
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
            announced = _content_length(scope)
            if announced is not None and announced > self.max_body_bytes:
                error = _error("too_large", too_large(self.max_body_bytes), identifier)
                await json_response(error, status=413)(scope, receive, answer)
            else:
                await self.app(scope, _counted(receive, self.max_body_bytes), answer)
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


def _counted(receive: Receive, limit: int) -> Callable[[], Any]:
    """Return ``receive`` that stops a body which was announced too small, or not at all."""
    seen = 0

    async def count() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                # The framework lets this one pass where it would turn others into status 400.
                raise HTTPException(413, too_large(limit))
        return message

    return count
