"""What passes through the engine: requests on their way, and reports of what became of them."""

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
    """The server is stopping, or has not started: it takes no new requests."""


class RequestTimeout(ServingError):
    """The request's time ran out before it could be computed."""


class TooManyTokens(ServingError):
    """One request brings more tokens than one may."""


class Encoded(NamedTuple):
    """Vectors of one request, in the order of its texts.

    Args:
        vectors: The vectors.
        tokens: Tokens of each text, cut to the task's limit.
        waited_seconds: From arrival until the last text's batch began.
        seconds: From arrival until all vectors were there.
    """

    vectors: Float[np.ndarray, "texts dim"]
    tokens: list[int]
    waited_seconds: float
    seconds: float


class BatchReport(NamedTuple):
    """What one batch was; for metrics.

    Args:
        texts: Rows.
        tokens: Tokens of all rows.
        tasks: Different prompts (bare backbone counted as one).
        share: Tokens over the budget.
        seconds: Time of the compute phase.
        waiting_tokens: Tokens left in the queue.
    """

    texts: int
    tokens: int
    tasks: int
    share: float
    seconds: float
    waiting_tokens: int


class CheckReport(NamedTuple):
    """Outcome of a self-check.

    Args:
        rows: Vectors compared.
        tasks: Different tasks among them.
        difference: Largest difference, in units of the longest vector.
        passed: Whether it is within what the forward pass promises (1e-5 in float32).
    """

    rows: int
    tasks: int
    difference: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the engine works.

    Args:
        batch: Sizes of batches and queue.
        request_tokens: Most tokens of one request.
        threads: Processor threads of the compute phase, 0 for torch's own choice.
        check_every: After so many batches one row is computed again alone and compared; 0: never.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    request_tokens: int = 300_000
    threads: int = 0
    check_every: int = 500


class PendingRequest:
    """A request on its way: what it wants, and how much of it is done."""

    __slots__ = (
        "arrived",
        "began",
        "cut",
        "deadline",
        "estimate",
        "future",
        "left",
        "number",
        "side",
        "texts",
        "tokens",
        "vectors",
        "version",
    )

    def __init__(
        self,
        texts: list[str],
        *,
        number: int,
        version: TaskVersion,
        side: Side,
        deadline: float,
        keep_end: bool = False,
    ) -> None:
        self.texts = texts
        self.number = number
        self.version = version
        self.side: Side = side
        self.deadline = deadline
        self.arrived = time.monotonic()
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
    """One text in the queue: where its vector goes."""

    request: PendingRequest
    place: int
    ids: list[int]
