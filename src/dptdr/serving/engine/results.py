"""Results, reports, settings and errors of the engine."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dptdr.errors import ServingError
from dptdr.serving.engine.batching import BatchLimits


class Draining(ServingError):
    """The server is starting or stopping."""


class RequestTimeout(ServingError):
    """A request timed out before it was computed."""


class TooManyTokens(ServingError):
    """A request exceeds the token limit."""


class Encoded(NamedTuple):
    """The vectors of a request, in the order of its texts."""

    vectors: Float[np.ndarray, "texts dim"]
    tokens: list[int]
    """Tokens of each text, after truncation."""
    waited_seconds: float
    """Time from arrival until the last batch started."""
    seconds: float
    """Time from arrival until all vectors were computed."""


class BatchReport(NamedTuple):
    """Statistics of one batch, for metrics."""

    texts: int
    tokens: int
    tasks: int
    """Number of distinct prompts, counting the bare backbone as one."""
    share: float
    """Tokens divided by the batch limit."""
    seconds: float
    """Duration of the compute stage."""
    waiting_tokens: int
    """Tokens remaining in the queue."""


class CheckReport(NamedTuple):
    """Result of a self-check."""

    rows: int
    tasks: int
    difference: float
    """Largest difference, relative to the largest norm."""
    passed: bool
    """Whether the difference is within tolerance (1e-5 in float32)."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of the engine.

    Args:
        batch: Limits for batches and the queue.
        request_tokens: Maximum tokens per request.
        threads: CPU threads for the compute stage; 0 for torch's default.
        check_every: Batches between self-checks of one row; 0 to disable.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    request_tokens: int = 300_000
    threads: int = 0
    check_every: int = 500
