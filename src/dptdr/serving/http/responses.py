"""JSON responses via orjson, with support for numpy arrays."""

from typing import Any

import orjson
from starlette.responses import Response

from dptdr.serving.http import schemas

_STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 504)


def reply_of(model: Any, *, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Describe a route's responses for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        code: {"model": schemas.ErrorReply} for code in _STATUSES
    }
    found[status] = {"model": model} if model is not None else {}
    return found


def json_response(value: Any, *, status: int = 200) -> Response:
    """Build a JSON response."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, media_type="application/json")
