"""Rate limits for keys and tasks."""

import threading
from collections.abc import Callable, Hashable
from time import monotonic

from dptdr.errors import ServingError

_MAX_BUCKETS = 10_000
_UNUSED_SECONDS = 60.0


class RateLimited(ServingError):
    """A client sent too many requests."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Rates:
    """Token buckets, one per key or task.

    Args:
        burst: Bucket size: requests allowed at once.
        clock: Returns the time in seconds.
    """

    def __init__(self, burst: int, *, clock: Callable[[], float] = monotonic) -> None:
        self.burst = burst
        self._clock = clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, who: Hashable, *, per_second: float, what: str) -> None:
        """Count one request; ``per_second`` 0 means no limit, ``what`` names the client in errors.

        Raises:
            RateLimited: If the bucket is empty.
        """
        if per_second <= 0:
            return
        now = self._clock()
        with self._lock:
            left, then = self._buckets.get(who, (float(self.burst), now))
            left = min(float(self.burst), left + (now - then) * per_second)
            if left < 1.0:
                self._buckets[who] = (left, now)
                raise RateLimited(
                    f"rate limit exceeded: {what} may send {per_second:g} requests per second",
                    retry_after_seconds=(1.0 - left) / per_second,
                )
            self._buckets[who] = (left - 1.0, now)
            if len(self._buckets) > _MAX_BUCKETS:
                # A full bucket carries no state, so drop the ones unused for long.
                self._buckets = {
                    name: (rest, since)
                    for name, (rest, since) in self._buckets.items()
                    if now - since < _UNUSED_SECONDS
                }
