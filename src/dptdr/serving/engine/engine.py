"""The engine: three phases that overlap, one batch computed at a time.

*Prepare* tokenises new requests, *compute* runs the batch that the queue gives, *finish* hands
vectors back; each in a thread of its own, so that the processor's matrix units never wait for
text or JSON. All three release the interpreter lock while they work.
"""

import itertools
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from dptdr.errors import DptdrError, ServingError
from dptdr.model.backbone import Side
from dptdr.serving.engine.batching import BatchQueue, Waiting
from dptdr.serving.engine.forward import Row
from dptdr.serving.engine.requests import (
    BatchReport,
    CheckReport,
    Draining,
    Encoded,
    EngineSettings,
    PendingRequest,
    RequestTimeout,
    TooManyTokens,
    Work,
)
from dptdr.serving.engine.selfcheck import compare, mixture
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import TaskRegistry

_PREPARED_AT_ONCE = 64
"""Requests that are tokenised in one call."""


class Engine:
    """Encodes texts of all tasks of a registry.

    Args:
        registry: The tasks.
        settings: How to work.
        on_batch: Called after each batch, from the compute thread; must be quick.
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
        """Tokens in the queue; estimated for texts that are being tokenised."""
        return self._queue.tokens + self._preparing_tokens

    def stop(self, *, timeout_seconds: float = 30.0) -> bool:
        """Stop accepting requests, finish the others, then stop.

        Args:
            timeout_seconds: How long to wait; open requests then fail with :class:`Draining`.

        Returns:
            Whether all requests were finished.
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
        """Queue texts of one task; return a future of their vectors, which may be cancelled.

        Args:
            texts: At least one text.
            version: The task's version, from :meth:`TaskRegistry.resolve`.
            side: Query or passage.
            timeout_seconds: After this the request fails with :class:`RequestTimeout`.
            keep_end: Whether long texts lose their beginning instead of their end.

        Raises:
            Draining: If the engine does not run.
            QueueFull: If too much waits already.
            ValueError: If there is no text.
        """
        if not texts:
            raise ValueError("expected at least one text")
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
                raise Draining("the server is starting or stopping; try another one")
            self.settings.batch.check_room(self.waiting_tokens, request.estimate)
            self._preparing_tokens += request.estimate
            self._open.add(request)
        request.future.add_done_callback(lambda future: self._cancelled(request, future))
        self._to_prepare.put(request)
        return request.future

    def encode(self, texts: Sequence[str], *, task: str, side: Side) -> Float[np.ndarray, "t dim"]:
        """Return the vectors of texts (blocking), for scripts and tests."""
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
                self._fail(request, ServingError(f"a text cannot be tokenised: {error}"))
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
                        f"expected at most {limit:,} tokens in one request, got {total:,}; send "
                        "fewer texts"
                    )
                self._queue.put(waiting)
                self._changed.notify_all()
        except ServingError as error:
            self._fail(request, error)

    # Compute

    def _compute_loop(self) -> None:
        if self.settings.threads:
            # The setting is per thread where OpenMP is used.
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
                    RequestTimeout("the request's time ran out while it waited; try again later"),
                )
            if taken.batch:
                self._compute([w.payload for w in taken.batch], waiting_tokens=waiting)

    def _compute(self, works: list[Work], *, waiting_tokens: int) -> None:
        began = time.monotonic()
        for work in works:
            work.request.began = began
        try:
            rows = [
                Row(w.ids, self.registry.prompt(w.request.version, w.request.side)) for w in works
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
                # The vectors are on their way already; a check that breaks is one that failed.
                self.on_check(CheckReport(rows=1, tasks=1, difference=float("nan"), passed=False))

    def _compute_apart(self, works: list[Work], error: Exception) -> None:
        """Compute each row alone, so that only faulty ones fail."""
        if len(works) == 1:
            if not isinstance(error, DptdrError):
                error = ServingError(f"the vector could not be computed: {error}")
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
                if request.left == 0:
                    self._finish(request)

    def _finish(self, request: PendingRequest) -> None:
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
        """Compare a random mixture of tasks, sides and lengths with each row computed alone.

        Args:
            texts: Some texts, of different lengths.
            rows: Size of the mixture.
        """
        mixed = mixture(self.registry, texts, rows=rows, generator=self._random)
        return self._compare(mixed, self.forward.vectors(mixed).float().cpu().numpy())

    def _compare(self, rows: list[Row], vectors: Float[np.ndarray, "rows dim"]) -> CheckReport:
        report = compare(self.forward, rows, vectors)
        self.on_check(report)
        return report
