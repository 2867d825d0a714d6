"""Errors in one shape: ``{"error": {"type", "message", "request_id", ...}}``."""

import math
import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from dptdr.errors import (
    BackboneError,
    BundleError,
    DptdrError,
    ServingError,
    VectorsError,
    WrongBackbone,
    WrongPrompt,
)
from dptdr.serving.engine.batching import QueueFull
from dptdr.serving.engine.requests import Draining, RequestTimeout, TooManyTokens
from dptdr.serving.http.auth import Forbidden, Unauthorized
from dptdr.serving.http.rates import RateLimited
from dptdr.serving.http.responses import json_response
from dptdr.serving.tasks.registry import TaskExists, UnknownTask


class Invalid(ServingError):
    """A request asks for something that cannot be."""


# First match counts: special ones before general ones.
STATUS: tuple[tuple[type[DptdrError], int, str], ...] = (
    (Unauthorized, 401, "no_key"),
    (Forbidden, 403, "not_allowed"),
    (UnknownTask, 404, "unknown_task"),
    (TaskExists, 409, "task_exists"),
    (WrongBackbone, 409, "wrong_backbone"),
    (WrongPrompt, 409, "wrong_prompt"),
    (BundleError, 422, "broken_bundle"),
    (BackboneError, 422, "cannot_encode"),
    (Invalid, 422, "invalid"),
    (TooManyTokens, 422, "too_many_tokens"),
    (QueueFull, 429, "queue_full"),
    (RateLimited, 429, "rate"),
    (Draining, 503, "not_ready"),
    (RequestTimeout, 504, "too_late"),
    (VectorsError, 409, "index"),
    (ServingError, 409, "refused"),
    (DptdrError, 422, "refused"),
)

_MAX_MESSAGE = 1000

# The folders of an absolute path, up to its last part.
_FOLDERS = re.compile(r"(?<![\w.:/])/(?!v1/|tasks/NAME|tasks:)(?:[^/\s'\";,]+/)+(?=[^/\s])")

_NAMES = {
    400: "unreadable",
    404: "no_such_route",
    408: "too_slow",
    405: "method",
    413: "too_large",
    499: "hung_up",
    503: "not_ready",
}


def problem(status: int, kind: str, message: str, *, request: Request, **more: Any) -> Response:
    """Return an error reply.

    Args:
        status: HTTP status.
        kind: Word for programs.
        message: Sentence for people.
        request: What it answers.
        more: Further fields.

    Returns:
        The reply.
    """
    identifier = request.scope.get("dptdr_request_id", "")
    # Half a character from a broken file must not break the reply.
    said = message.encode("utf-8", "replace").decode("utf-8")
    if len(said) > _MAX_MESSAGE:
        said = said[:_MAX_MESSAGE] + "..."
    body = {"type": kind, "message": said, "request_id": identifier, **more}
    return json_response({"error": body}, status=status)


def of_error(error: DptdrError, request: Request) -> Response:
    """Return the reply for one of dptdr's own errors."""
    status, kind = next((s, k) for cls, s, k in STATUS if isinstance(error, cls))
    reply = problem(status, kind, without_folders(str(error)), request=request)
    seconds = getattr(error, "retry_after_seconds", 1.0 if status == 503 else None)
    if seconds is not None:
        reply.headers["Retry-After"] = str(math.ceil(seconds))
    if status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply


def without_folders(message: str) -> str:
    """Return a message without the folders of this machine: a path's last part is enough."""
    return _FOLDERS.sub("", message)


def install(app: FastAPI) -> None:
    """Let all errors of an application come out in the one shape."""

    @app.exception_handler(DptdrError)
    async def _own(request: Request, error: DptdrError) -> Response:
        return of_error(error, request)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            f"{'.'.join(str(part)[:60] for part in item['loc'])}: {item['msg'][:300]}"
            for item in error.errors()[:5]
        ]
        return problem(422, "invalid", "; ".join(found), request=request)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        kind = _NAMES.get(error.status_code, "refused")
        reply = problem(error.status_code, kind, str(error.detail), request=request)
        for name, value in (error.headers or {}).items():
            reply.headers[name] = value
        if error.status_code == 405:
            reply.headers["Allow"] = ", ".join(_methods(request))
        return reply


def _methods(request: Request) -> list[str]:
    """Return all methods that an address knows; the framework names those of one route."""
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches({**request.scope, "type": "http"})
        if match != Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return sorted(found)
