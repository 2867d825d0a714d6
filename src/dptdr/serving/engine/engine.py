"""The engine: a three-stage pipeline that computes one batch at a time.

*Prepare* tokenizes new requests, *compute* runs the next batch, *finish* returns vectors. Each
stage has its own thread and releases the GIL, so computation never waits for text or JSON.
"""

import itertools
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from dptdr.errors import DptdrError, ServingError
from dptdr.model.backbone import Side
from dptdr.serving.engine.batching import BatchQueue, Waiting
from dptdr.serving.engine.results import (
    BatchReport,
    CheckReport,
    Draining,
    Encoded,
    EngineSettings,
    RequestTimeout,
    TooManyTokens,
)
from dptdr.serving.engine.selfcheck import compare, mixture
from dptdr.serving.forward import BatchRow
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import TaskRegistry

_PREPARED_AT_ONCE = 64
"""Maximum requests tokenized in one call."""

_CHARACTERS_PER_TOKEN = 3


class PendingRequest:
    """A request in progress."""

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
        # Requests with the same truncation are tokenized together.
        self.cut: tuple[Side, int, bool] = (side, limit, keep_end)
        self.estimate = sum(min(limit, 2 + len(text) // _CHARACTERS_PER_TOKEN) for text in texts)
        self.tokens: list[int] = []
        self.vectors = np.empty((0, 0), dtype=np.float32)
        self.future: Future[Encoded] = Future()


class Work(NamedTuple):
    """A queued text and the index of its vector in the request."""

    request: PendingRequest
    place: int
    ids: list[int]


class Engine:
    """Encodes texts for all tasks in a registry.

    Args:
        on_batch: Called after each batch from the compute thread; must be fast.
        on_check: Called after each self-check.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        *,
        settings: EngineSettings | None = None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_check: Callable[[CheckReport], None] = lambda report: None,
    ) -> None:
        self.registry = registry
        self.forward = registry.forward
        self.settings = settings or EngineSettings()
        self.on_batch = on_batch
        self.on_check = on_check
        self._queue = BatchQueue(self.settings.batch)
        self._changed = threading.Condition()
        self._to_prepare: queue.SimpleQueue[PendingRequest | None] = queue.SimpleQueue()
        self._to_finish: queue.SimpleQueue[tuple[list[Work], Any] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._preparing_tokens = 0
        self._open: set[PendingRequest] = set()
        self._accepting = False
        self._stopping = False
        self._batches = 0
        self._random = random.Random(0)
        self._threads: list[threading.Thread] = []

    def start(self) -> "Engine":
        """Start the three threads."""
        for name in ("prepare", "compute", "finish"):
            thread = threading.Thread(
                target=getattr(self, f"_{name}_loop"), name=f"dptdr-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        self._accepting = True
        return self

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ready(self) -> bool:
        """Whether new requests are accepted."""
        return self._accepting

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue, including an estimate for texts being tokenized."""
        return self._queue.tokens + self._preparing_tokens

    def stop(self, *, timeout_seconds: float = 30.0) -> bool:
        """Stop accepting requests, finish pending ones, then stop.

        Args:
            timeout_seconds: Time to wait; remaining requests then fail with :class:`Draining`.

        Returns:
            True if all requests were finished.
        """
        with self._changed:
            self._accepting = False
            done = self._changed.wait_for(lambda: not self._open, timeout=timeout_seconds)
            left = list(self._open)
            self._stopping = True
            self._changed.notify_all()
        for request in left:
            self._fail(request, Draining("the server stopped before the request was computed"))
        self._to_prepare.put(None)
        self._to_finish.put(None)
        for thread in self._threads:
            thread.join(timeout=10.0)
        return done

    def submit(
        self,
        texts: Sequence[str],
        *,
        version: TaskVersion,
        side: Side,
        timeout_seconds: float = 60.0,
        keep_end: bool = False,
    ) -> "Future[Encoded]":
        """Queue texts of one task and return a cancellable future of their vectors.

        Args:
            texts: At least one text.
            version: The task's version, from :meth:`TaskRegistry.resolve`.
            side: Query or passage.
            timeout_seconds: The request then fails with :class:`RequestTimeout`.
            keep_end: Truncate long texts at the start instead of the end.

        Raises:
            Draining: If the engine is not running.
            QueueFull: If the queue is full.
            ValueError: If there are no texts.
        """
        if not texts:
            raise ValueError("expected at least one text, got none")
        request = PendingRequest(
            list(texts),
            number=next(self._numbers),
            version=version,
            side=side,
            timeout_seconds=timeout_seconds,
            keep_end=keep_end,
        )
        with self._changed:
            if not self._accepting:
                raise Draining("the server is starting or stopping; try another server")
            self.settings.batch.check_room(self.waiting_tokens, request.estimate)
            self._preparing_tokens += request.estimate
            self._open.add(request)
        request.future.add_done_callback(lambda future: self._cancelled(request, future))
        self._to_prepare.put(request)
        return request.future

    def encode(self, texts: Sequence[str], *, task: str, side: Side) -> Float[np.ndarray, "t dim"]:
        """Encode texts synchronously, for scripts and tests."""
        if not texts:
            return np.zeros((0, self.registry.backbone.dim), dtype=np.float32)
        version = self.registry.resolve(task)
        future = self.submit(texts, version=version, side=side, timeout_seconds=math.inf)
        return future.result().vectors

    def _cancelled(self, request: PendingRequest, future: "Future[Encoded]") -> None:
        if future.cancelled():
            self._close(request)

    def _close(self, request: PendingRequest) -> None:
        with self._changed:
            self._queue.cancel(request.number)
            self._open.discard(request)
            self._changed.notify_all()

    def _fail(self, request: PendingRequest, error: BaseException) -> None:
        if not request.future.done() and request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)
        self._close(request)

    # Prepare

    def _prepare_loop(self) -> None:
        while True:
            requests: list[PendingRequest] = []
            request = self._to_prepare.get()
            while request is not None:
                requests.append(request)
                if self._to_prepare.empty() or len(requests) >= _PREPARED_AT_ONCE:
                    break
                request = self._to_prepare.get()
            for cut in sorted({r.cut for r in requests}):
                self._prepare([r for r in requests if r.cut == cut], cut)
            if request is None:
                return

    def _prepare(self, requests: list[PendingRequest], cut: tuple[Side, int, bool]) -> None:
        side, limit, keep_end = cut
        texts = [text for request in requests for text in request.texts]
        try:
            ids = self.forward.tokenize(texts, side=side, max_tokens=limit, keep_end=keep_end)
        except Exception as error:
            for request in requests:
                with self._changed:
                    self._preparing_tokens -= request.estimate
                self._fail(request, ServingError(f"cannot tokenize a text: {error}"))
            return
        rows = iter(ids)
        for request in requests:
            self._enqueue(request, list(itertools.islice(rows, len(request.texts))))

    def _enqueue(self, request: PendingRequest, ids: list[list[int]]) -> None:
        request.texts = []
        request.tokens = [len(row) for row in ids]
        request.vectors = np.empty((len(ids), self.registry.backbone.dim), dtype=np.float32)
        total, limit = sum(request.tokens), self.settings.request_tokens
        waiting = [
            Waiting(
                tokens=len(row),
                request=request.number,
                arrived=request.arrived,
                deadline=request.deadline,
                request_tokens=total,
                payload=Work(request, place, row),
            )
            for place, row in enumerate(ids)
        ]
        try:
            with self._changed:
                self._preparing_tokens -= request.estimate
                if request.future.cancelled():
                    return
                if total > limit:
                    raise TooManyTokens(
                        f"expected at most {limit:,} tokens per request, got {total:,}; send "
                        "fewer texts"
                    )
                self._queue.put(waiting)
                self._changed.notify_all()
        except ServingError as error:
            self._fail(request, error)

    # Compute

    def _compute_loop(self) -> None:
        if self.settings.threads:
            # With OpenMP, the setting applies per thread.
            torch.set_num_threads(self.settings.threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._queue) > 0 or self._stopping)
                if self._stopping:
                    return
                taken = self._queue.take(time.monotonic())
                waiting = self._queue.tokens
            for late in taken.expired:
                self._fail(
                    late.payload.request,
                    RequestTimeout("the request timed out in the queue; try again later"),
                )
            if taken.batch:
                self._compute([w.payload for w in taken.batch], waiting_tokens=waiting)

    def _compute(self, works: list[Work], *, waiting_tokens: int) -> None:
        began = time.monotonic()
        for work in works:
            work.request.began = began
        try:
            rows = [
                BatchRow(w.ids, self.registry.prompt(w.request.version, w.request.side))
                for w in works
            ]
            vectors = self.forward.vectors(rows).float().cpu().numpy()
        except Exception as error:
            self._compute_apart(works, error)
            return
        self._to_finish.put((works, vectors))
        self._batches += 1
        tokens = sum(len(work.ids) for work in works)
        self.on_batch(
            BatchReport(
                texts=len(works),
                tokens=tokens,
                tasks=len({id(row.prompt) for row in rows}),
                share=tokens / self.settings.batch.batch_tokens,
                seconds=time.monotonic() - began,
                waiting_tokens=waiting_tokens,
            )
        )
        every = self.settings.check_every
        if every and self._batches % every == 0:
            chosen = self._random.randrange(len(rows))
            try:
                self._compare([rows[chosen]], vectors[chosen : chosen + 1])
            except Exception:
                # The vectors have already been returned; an error counts as a failed check.
                self.on_check(CheckReport(rows=1, tasks=1, difference=float("nan"), passed=False))

    def _compute_apart(self, works: list[Work], error: Exception) -> None:
        """Compute each row separately, so that only faulty ones fail."""
        if len(works) == 1:
            if not isinstance(error, DptdrError):
                error = ServingError(f"cannot compute the vector: {error}")
            self._fail(works[0].request, error)
            return
        for work in works:
            if not work.request.future.done():
                self._compute([work], waiting_tokens=self._queue.tokens)

    # Finish

    def _finish_loop(self) -> None:
        while True:
            item = self._to_finish.get()
            if item is None:
                return
            works, vectors = item
            for work, vector in zip(works, vectors, strict=True):
                request = work.request
                request.vectors[work.place] = vector
                request.left -= 1
                if request.left:
                    continue
                if not request.future.done() and request.future.set_running_or_notify_cancel():
                    request.future.set_result(
                        Encoded(
                            vectors=request.vectors,
                            tokens=request.tokens,
                            waited_seconds=request.began - request.arrived,
                            seconds=time.monotonic() - request.arrived,
                        )
                    )
                self._close(request)

    def check(self, texts: Sequence[str], *, rows: int = 24) -> CheckReport:
        """Compare a random mixed batch with each row computed separately.

        Args:
            texts: Texts of different lengths to sample from.
            rows: Size of the batch.
        """
        mixed = mixture(self.registry, texts, rows=rows, generator=self._random)
        return self._compare(mixed, self.forward.vectors(mixed).float().cpu().numpy())

    def _compare(self, rows: list[BatchRow], vectors: Float[np.ndarray, "rows dim"]) -> CheckReport:
        report = compare(self.forward, rows, vectors)
        self.on_check(report)
        return report
