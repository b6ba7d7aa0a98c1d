"""Limits the number of requests in flight, and lowers the limit when the service is overloaded."""

import threading
import time
from types import TracebackType
from typing import Self


class ConcurrencyLimit:
    """A context manager that at most `most` threads can enter at a time.

    The limit is halved when the service is overloaded, and grows by one for each round of requests that
    succeed, like TCP's congestion window (Jacobson 1988).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._inside = 0
        self._not_before = 0.0  # monotonic seconds
        self._halved = 0.0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    def __enter__(self) -> Self:
        with self._changed:
            while (wait := self._not_before - time.monotonic()) > 0 or self._inside >= self.limit:
                self._changed.wait(wait if wait > 0 else None)
            self._inside += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def succeeded(self) -> None:
        """Raise the limit after a request that succeeded."""
        with self._changed:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)

    def stop_waiting(self) -> None:
        """Let requests begin at once, although the service asked for a pause."""
        with self._changed:
            self._not_before = 0.0
            self._changed.notify_all()

    def overloaded(self, started: float, seconds: float) -> None:
        """Lower the limit after a refusal of a request from `started`; none begins for `seconds`."""
        with self._changed:
            now = time.monotonic()
            self._not_before = max(self._not_before, now + seconds)
            if started >= self._halved:  # requests refused together count once
                self._limit, self._halved = max(1.0, self._limit / 2), now
