"""Rates: how many requests per second a key or a task may make."""

import threading
from collections.abc import Callable, Hashable
from time import monotonic

from dptdr.errors import ServingError


class RateLimited(ServingError):
    """Requests come faster than allowed.

    Args:
        message: Which rate.
        retry_after_seconds: When the next request would be taken.
    """

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Rates:
    """Token buckets, one for each key or task that was seen.

    Args:
        burst: Requests that may come at once.
        clock: Gives the time in seconds.
    """

    def __init__(self, burst: int, *, clock: Callable[[], float] = monotonic) -> None:
        self.burst = burst
        self._clock = clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, who: Hashable, *, per_second: float, what: str) -> None:
        """Count one request.

        Args:
            who: Whose bucket.
            per_second: Its rate; 0 is no limit.
            what: Names the rate in the message.

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
                    f"{what} may make {per_second:g} requests per second; slow down",
                    retry_after_seconds=(1.0 - left) / per_second,
                )
            self._buckets[who] = (left - 1.0, now)
            if len(self._buckets) > 10_000:
                # A full bucket is like none: forget those that nobody has used for long.
                self._buckets = {
                    name: (rest, since)
                    for name, (rest, since) in self._buckets.items()
                    if now - since < 60.0
                }
