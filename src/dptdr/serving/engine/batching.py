"""Batch scheduling: a queue shared by all tasks. Does not import torch.

Queued texts are sorted by length, so that neighbours form a batch with little padding. Each batch
starts with the most urgent text and is filled with its neighbours in length. Urgency is arrival
time plus the estimated time for the whole request, so a short query does not wait behind a thousand
passages that arrived just before it, and large requests wait only in proportion to their size.
"""

import bisect
import heapq
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dptdr.errors import ServingError


class QueueFull(ServingError):
    """The queue is full."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Size limits for batches and the queue.

    Args:
        batch_tokens: Maximum tokens per batch; a longer text gets its own batch.
        batch_texts: Maximum texts per batch.
        queue_tokens: Maximum queued tokens.
        cost: ``packed`` counts actual tokens, ``padded`` includes padding.
        tokens_per_second: Expected throughput, for urgency and ``Retry-After``.
    """

    batch_tokens: int = 4096
    batch_texts: int = 256
    queue_tokens: int = 400_000
    cost: Literal["packed", "padded"] = "packed"
    tokens_per_second: float = 4000.0

    def check_room(self, waiting: int, coming: int) -> None:
        """Reject a request that does not fit in the queue; an empty queue accepts any request.

        Raises:
            QueueFull: If there is no room.
        """
        over = waiting + coming - self.queue_tokens
        if waiting and over > 0:
            raise QueueFull(
                f"the queue has room for {self.queue_tokens:,} tokens and about {waiting:,} are "
                f"waiting, got {coming:,} more; try again later, or send fewer texts",
                retry_after_seconds=max(1.0, over / self.tokens_per_second),
            )


class Waiting(NamedTuple):
    """A queued text.

    Args:
        tokens: Length in tokens.
        request: The request it belongs to; requests are cancelled as a whole.
        arrived: Arrival time in seconds.
        deadline: Time, on the same clock, at which the text expires.
        request_tokens: Total tokens in the request.
        payload: The caller's data.
    """

    tokens: int
    request: Hashable
    arrived: float
    deadline: float
    request_tokens: int
    payload: Any = None


class _Entry:
    __slots__ = ("alive", "due", "number", "waiting")

    def __init__(self, waiting: Waiting, *, number: int, due: float) -> None:
        self.waiting = waiting
        self.number = number
        self.due = due
        self.alive = True

    @property
    def place(self) -> tuple[int, int]:
        return self.waiting.tokens, self.number

    def __lt__(self, other: "_Entry") -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Taken(NamedTuple):
    """The next batch, and texts that have expired."""

    batch: list[Waiting]
    expired: list[Waiting]


class BatchQueue:
    """Queued texts of all tasks. Not thread-safe: the engine holds a lock."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._by_length: list[_Entry] = []
        self._by_due: list[_Entry] = []
        self._requests: dict[Hashable, list[_Entry]] = {}
        self._numbers = itertools.count()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._by_length)

    def put(self, texts: list[Waiting]) -> None:
        """Add all texts of a request, or none.

        Raises:
            QueueFull: If there is no room.
        """
        coming = sum(text.tokens for text in texts)
        self.limits.check_room(self.tokens, coming)
        for text in texts:
            due = min(
                text.arrived + text.request_tokens / self.limits.tokens_per_second, text.deadline
            )
            entry = _Entry(text, number=next(self._numbers), due=due)
            bisect.insort(self._by_length, entry, key=lambda e: e.place)
            heapq.heappush(self._by_due, entry)
            self._requests.setdefault(text.request, []).append(entry)
        self.tokens += coming

    def cancel(self, request: Hashable) -> list[Waiting]:
        """Remove and return the queued texts of a request."""
        dropped = [entry for entry in self._requests.get(request, []) if entry.alive]
        self._drop(dropped)
        return [entry.waiting for entry in dropped]

    def take(self, now: float) -> Taken:
        """Remove the next batch and the expired texts from the queue."""
        expired = [entry for entry in self._by_length if entry.waiting.deadline < now]
        self._drop(expired)
        while self._by_due and not self._by_due[0].alive:
            heapq.heappop(self._by_due)
        batch = list(self._around(self._by_due[0])) if self._by_due else []
        self._drop(batch)
        return Taken([e.waiting for e in batch], [e.waiting for e in expired])

    def _around(self, first: _Entry) -> Iterator[_Entry]:
        """Yield the first text, then its neighbours by length, nearest first, while they fit."""
        place = bisect.bisect_left(self._by_length, first.place, key=lambda e: e.place)
        below, above = place - 1, place + 1
        count, total, longest = 1, first.waiting.tokens, first.waiting.tokens
        yield first
        while count < self.limits.batch_texts and (below >= 0 or above < len(self._by_length)):
            take_below = above >= len(self._by_length) or (
                below >= 0
                and longest - self._by_length[below].waiting.tokens
                <= self._by_length[above].waiting.tokens - longest
            )
            entry = self._by_length[below if take_below else above]
            count, total = count + 1, total + entry.waiting.tokens
            longest = max(longest, entry.waiting.tokens)
            cost = count * longest if self.limits.cost == "padded" else total
            if cost > self.limits.batch_tokens:
                return
            if take_below:
                below -= 1
            else:
                above += 1
            yield entry

    def _drop(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        for entry in entries:
            entry.alive = False
            self.tokens -= entry.waiting.tokens
            mates = self._requests[entry.waiting.request]
            if not any(mate.alive for mate in mates):
                del self._requests[entry.waiting.request]
        self._by_length = [entry for entry in self._by_length if entry.alive]
