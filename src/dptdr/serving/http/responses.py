"""Replies written with orjson, numpy arrays included."""

import base64
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float
from starlette.responses import Response


def json_response(value: Any, *, status: int = 200) -> Response:
    """Return a JSON reply."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, media_type="application/json")


def as_base64(vector: Float[np.ndarray, " dim"]) -> str:
    """Return a vector as OpenAI's clients read it: little-endian float32, base64."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
