"""Middleware for request ids, body limits, logging and metrics."""

import asyncio
import contextlib
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

from dptdr.serving.http.access import cross_site_reason
from dptdr.serving.http.errors import error_response
from dptdr.serving.metrics import Metrics

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = ("/health", "/metrics")


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


class RequestMiddleware:
    """Pure ASGI middleware, which adds microseconds of latency and does not buffer bodies.

    Args:
        metrics: Counts requests.
        max_body_bytes: Maximum body size.
        receive_seconds: Timeout for receiving the body.
        hosts: Host names of an open server, which must reject cross-site requests; ``None`` if
            API keys are required: other sites have none.
        logger: Receives one event per request, which never includes texts.
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
        if scope["method"] == "HEAD":
            # As GET in a scope of its own; the server still knows to omit the body.
            scope = {**scope, "method": "GET"}
        began = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identifier = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["dptdr_request_id"] = identifier
        # Fields that handlers add to the log line: task, number of texts, tokens, key.
        facts: dict[str, Any] = {}
        scope["dptdr_facts"] = facts
        status = 499

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
            await send(message)

        try:
            refused = self._refused(scope, headers)
            if refused is None:
                await self.app(scope, self._limited(receive), answer)
            else:
                reply = error_response(*refused, scope=scope)
                # The next request could not be told apart from the rest of the rejected body.
                reply.headers["Connection"] = "close"
                if b"transfer-encoding" not in headers:
                    await self._discard_body(receive)
                await reply(scope, receive, answer)
        except Exception as error:
            facts["error"] = "".join(traceback.format_exception_only(error)).strip()[:500]
            facts["trace"] = "".join(traceback.format_tb(error.__traceback__)[-6:])
            if status == 499:
                # The client gets only the request id, which identifies the log line.
                said = "internal server error; see the server's log"
                await error_response(500, "bug", said, scope=scope)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, str(status)).inc()
            quiet = self.logger.debug if route in _QUIET else self.logger.info
            log = self.logger.error if status == 500 else quiet
            log(
                "request",
                request_id=identifier,
                method=scope["method"],
                route=route,
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
                **facts,
            )

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        """Return status, type and message if the headers alone justify rejecting a request."""
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            return 400, "unreadable", "expected Content-Length or Transfer-Encoding, got both"
        if self.hosts is not None:
            why = cross_site_reason(scope["method"], scope["headers"], hosts=self.hosts)
            if why:
                return 403, "cross_site", why
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return 413, "too_large", self._too_large()
        return None

    async def _discard_body(self, receive: Receive) -> None:
        """Discard a rejected body, within limits.

        Closing a connection with unread data resets it, and the client never sees the response.
        """
        left = 4 * self.max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.receive_seconds):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _limited(self, receive: Receive) -> Callable[[], Any]:
        """Wrap ``receive`` to reject bodies that are too large or too slow."""
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
                # The framework passes these through, but turns other exceptions into status 400.
                why = f"expected the whole body within {self.receive_seconds:g} seconds"
                raise HTTPException(408, why, headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                seen += len(message.get("body", b""))
                if seen > self.max_body_bytes:
                    raise HTTPException(413, self._too_large(), headers={"Connection": "close"})
            return message

        return limited

    def _too_large(self) -> str:
        return f"expected a body of at most {self.max_body_bytes:,} bytes; send fewer texts"
