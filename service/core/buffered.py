"""Prometheus metrics that buffer what they are given and count it all at once.

In several processes every metric lives in a file that they share, and writing each value to it takes longer
than measuring the value. `keep` appends to a list instead, from any thread; `flush` counts the list.

prometheus_client has no public way to do this. All of its private attributes that the service uses are in
this file: `_metric_init` (called for each child), `_metrics` (the children by labels), `_upper_bounds`,
`_buckets` and `_sum`.
"""

from typing import Any

import numpy as np
from prometheus_client import Counter, Histogram


class BufferedCounter(Counter):
    """A counter with labels whose children are given amounts by `keep`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._values: list[float] = []
        self.keep = self._values.append

    def flush(self) -> None:
        children: list[Any] = list(self._metrics.values())
        for child in children:
            if values := _take(child._values):
                child.inc(sum(values))


class BufferedHistogram(Histogram):
    """A histogram with labels whose children are given values by `keep` or `keep_all`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._values: list[float] = []
        self.keep = self._values.append
        self.keep_all = self._values.extend

    def flush(self) -> None:
        children: list[Any] = list(self._metrics.values())
        for child in children:
            if values := _take(child._values):
                bounds = child._upper_bounds
                counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds))
                for bucket in np.flatnonzero(counts):
                    child._buckets[bucket].inc(int(counts[bucket]))
                child._sum.inc(sum(values))


def _take(buffer: list[float]) -> list[float]:
    """Empties the buffer, except for what other threads append meanwhile."""
    values = buffer[:]
    del buffer[: len(values)]
    return values
