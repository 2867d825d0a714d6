"""Requests, results and reports of the engine."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dptdr.errors import ServingError
from dptdr.model.backbone import Side
from dptdr.serving.engine.batching import BatchLimits
from dptdr.serving.tasks.prompt_cache import TaskVersion

_CHARACTERS_PER_TOKEN = 3


class Draining(ServingError):
    """The server is starting or stopping."""


class RequestTimeout(ServingError):
    """The request timed out before it was computed."""


class TooManyTokens(ServingError):
    """A request has more tokens than one may have."""


class Encoded(NamedTuple):
    """Vectors of one request, in the order of its texts."""

    vectors: Float[np.ndarray, "texts dim"]
    tokens: list[int]
    """Tokens of each text, cut to the task's limit."""
    waited_seconds: float
    """From arrival until the last text's batch began."""
    seconds: float
    """From arrival until all vectors were computed."""


class BatchReport(NamedTuple):
    """One batch, for metrics."""

    texts: int
    tokens: int
    tasks: int
    """Different prompts; the bare backbone counts as one."""
    share: float
    """Tokens over the budget."""
    seconds: float
    """Time of the compute phase."""
    waiting_tokens: int
    """Tokens left in the queue."""


class CheckReport(NamedTuple):
    """Outcome of a self-check."""

    rows: int
    tasks: int
    difference: float
    """Largest difference, in units of the longest vector."""
    passed: bool
    """Whether it is within what the forward pass promises (1e-5 in float32)."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of the engine.

    Args:
        batch: Sizes of batches and queue.
        request_tokens: Maximum tokens of one request.
        threads: Processor threads of the compute phase, 0 for torch's own choice.
        check_every: Batches between self-checks of one row against it alone; 0: never.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    request_tokens: int = 300_000
    threads: int = 0
    check_every: int = 500


class PendingRequest:
    """A request being computed, and its progress."""

    def __init__(
        self,
        texts: list[str],
        *,
        number: int,
        version: TaskVersion,
        side: Side,
        timeout_seconds: float,
        keep_end: bool,
    ) -> None:
        self.texts = texts
        self.number = number
        self.version = version
        self.side: Side = side
        self.arrived = time.monotonic()
        self.deadline = self.arrived + timeout_seconds
        self.began = self.arrived
        self.left = len(texts)
        limit = version.limits.of(side)
        # Requests that are cut alike are tokenised together.
        self.cut: tuple[Side, int, bool] = (side, limit, keep_end)
        self.estimate = sum(min(limit, 2 + len(text) // _CHARACTERS_PER_TOKEN) for text in texts)
        self.tokens: list[int] = []
        self.vectors = np.empty((0, 0), dtype=np.float32)
        self.future: Future[Encoded] = Future()


class Work(NamedTuple):
    """A text in the queue, and the place of its vector."""

    request: PendingRequest
    place: int
    ids: list[int]
