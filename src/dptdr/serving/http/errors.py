"""Error responses: ``{"error": {"type", "message", "request_id"}}``."""

import math
import re

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from dptdr.errors import (
    BackboneError,
    BundleError,
    DptdrError,
    NoSuchField,
    ServingError,
    VectorsError,
    WrongBackbone,
    WrongPrompt,
)
from dptdr.serving.auth import Forbidden, Unauthorized
from dptdr.serving.engine.batching import QueueFull
from dptdr.serving.engine.results import Draining, RequestTimeout, TooManyTokens
from dptdr.serving.http.responses import json_response
from dptdr.serving.rates import RateLimited
from dptdr.serving.tasks.registry import TaskExists, UnknownTask


class Invalid(ServingError):
    """The request is invalid."""


class ClientDisconnected(ServingError):
    """The client has disconnected."""


# The first match wins, so specific errors come before general ones.
STATUS: tuple[tuple[type[DptdrError], int, str], ...] = (
    (Unauthorized, 401, "no_key"),
    (Forbidden, 403, "not_allowed"),
    (UnknownTask, 404, "unknown_task"),
    (TaskExists, 409, "task_exists"),
    (WrongBackbone, 409, "wrong_backbone"),
    (WrongPrompt, 409, "wrong_prompt"),
    (NoSuchField, 400, "no_such_field"),
    (BundleError, 422, "broken_bundle"),
    (BackboneError, 422, "cannot_encode"),
    (Invalid, 422, "invalid"),
    (TooManyTokens, 422, "too_many_tokens"),
    (QueueFull, 429, "queue_full"),
    (RateLimited, 429, "rate"),
    (ClientDisconnected, 499, "hung_up"),
    (Draining, 503, "not_ready"),
    (RequestTimeout, 504, "too_late"),
    (VectorsError, 409, "index"),
    (ServingError, 409, "refused"),
    (DptdrError, 422, "refused"),
)

_HTTP_TYPES = {
    400: "unreadable",
    404: "no_such_route",
    405: "method",
    408: "too_slow",
    413: "too_large",
}

_MAX_MESSAGE = 1000

# The parent folders of an absolute path.
_FOLDERS = re.compile(
    r"(?<![\w.:/])/(?!v1/|tasks/NAME|tasks/[^/\s]+:(?:query|passage)\b|tasks:)"
    r"(?:[^/\s'\";,]+/)+(?=[^/\s])"
)


def error_response(status: int, kind: str, message: str, *, scope: Scope) -> Response:
    """Build an error response with a machine-readable ``kind``."""
    # A lone surrogate from a damaged file must not break the response.
    said = message.encode("utf-8", "replace").decode("utf-8")
    if len(said) > _MAX_MESSAGE:
        said = said[:_MAX_MESSAGE] + "..."
    body = {"type": kind, "message": said, "request_id": scope.get("dptdr_request_id", "")}
    return json_response({"error": body}, status=status)


def without_folders(message: str) -> str:
    """Shorten absolute paths in a message to their last component."""
    return _FOLDERS.sub("", message)


async def own_error(request: Request, error: Exception) -> Response:
    """Handle a dptdr error."""
    status, kind = next((s, k) for cls, s, k in STATUS if isinstance(error, cls))
    reply = error_response(status, kind, without_folders(str(error)), scope=request.scope)
    seconds = getattr(error, "retry_after_seconds", 1.0 if status == 503 else None)
    if seconds is not None:
        reply.headers["Retry-After"] = str(math.ceil(seconds))
    if status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        f"{'.'.join(str(part)[:60] for part in item['loc'])}: {item['msg'][:300]}"
        for item in error.errors()[:5]
    ]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found and found[0].startswith("body: ") and not kind.endswith("json"):
        # Clients such as `curl -d` send forms by default, whose body is not parsed.
        found = [f"Content-Type: expected application/json, got '{kind[:60]}'"]
    return error_response(422, "invalid", "; ".join(found), scope=request.scope)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP_TYPES.get(error.status_code, "refused")
    reply = error_response(error.status_code, kind, str(error.detail), scope=request.scope)
    reply.headers.update(error.headers or {})
    if error.status_code == 405:
        # List the methods of all routes at this path; the framework lists those of one.
        matching = [r for r in request.app.routes if r.matches(request.scope)[0] != Match.NONE]
        methods = {method for r in matching for method in getattr(r, "methods", None) or ()}
        reply.headers["Allow"] = ", ".join(sorted(methods))
    return reply


def install(app: FastAPI) -> None:
    """Register the error handlers."""
    app.add_exception_handler(DptdrError, own_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
