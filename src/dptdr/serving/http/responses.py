"""Replies written with orjson, numpy arrays included."""

import base64
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float
from starlette.responses import Response

from dptdr.serving.http import schemas

_STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 504)


def reply_of(model: Any, *, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the replies of a route for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        code: {"model": schemas.ProblemReply} for code in _STATUSES
    }
    found[status] = {"model": model} if model is not None else {}
    return found


def json_response(value: Any, *, status: int = 200) -> Response:
    """Return a JSON reply."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, media_type="application/json")


def as_base64(vector: Float[np.ndarray, " dim"]) -> str:
    """Return a vector as OpenAI's clients read it: little-endian float32, base64."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
