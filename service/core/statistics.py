"""The statistics of the Open Inference Protocol: exact counts over all workers.

They are counters beside those of /metrics and stored in the same way (service/core/metrics.py): the worker
that is asked adds up those of all processes, and may miss the last fifth of a second of the others.
"""

import time
from collections.abc import Mapping
from typing import Any

from service.core.batcher import Arrays, Run
from service.core.metrics import Keep, Metrics

STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")

Counts = Mapping[tuple[str, ...], int]  # by the name of the metric and its labels


class Executions:
    """Counts the runs of one graph or function of a model, and their rows. Written by one thread.

    `labels`: name and version of the model, and the graph or function.
    """

    def __init__(self, metrics: Metrics, *labels: str) -> None:
        self._keep_runs: Keep = metrics.oip_runs.labels(*labels).keep
        self._keep_rows: Keep = metrics.oip_rows.labels(*labels).keep

    def add(self, rows: int) -> None:
        """Count one run."""
        self._keep_runs(1)
        self._keep_rows(rows)

    def counted(self, run: Run) -> Run:
        """`run`, with each call that succeeds counted."""

        def counted(*arrays: Any) -> Arrays:
            results = run(*arrays)
            self.add(len(arrays[0]))
            return results

        return counted


class Requests:
    """Requests for one function of a model, and the time of their steps. `labels` as of Executions."""

    def __init__(self, metrics: Metrics, *labels: str) -> None:
        self._steps = {
            step: (metrics.oip_requests.labels(*labels, step).keep, metrics.oip_ns.labels(*labels, step).keep)
            for step in STEPS
        }
        self._last = metrics.oip_last.labels(*labels)

    def failed(self, ns: int) -> None:
        """Count one request that failed after `ns` nanoseconds."""
        self._add("fail", ns)

    def succeeded(self, **ns: int) -> None:
        """Count one request by the nanoseconds of every step but `fail`; `success` is the total."""
        for step, spent in ns.items():
            self._add(step, spent)
        self._last.set(time.time_ns() // 1_000_000)

    def _add(self, step: str, ns: int) -> None:
        keep_count, keep_ns = self._steps[step]
        keep_count(1)
        keep_ns(ns)


def shown(counts: Counts, requests: tuple[str, ...], runs: tuple[str, ...]) -> dict[str, Any]:
    """The statistics of a model of the protocol. `requests` and `runs` are the labels of its counters."""

    def duration(step: str) -> dict[str, int]:
        key = (*requests, step)
        return {
            "count": counts.get(("vae_oip_requests_total", *key), 0),
            "ns": counts.get(("vae_oip_nanoseconds_total", *key), 0),
        }

    none = {"count": 0, "ns": 0}  # clients require the keys, though there is no cache
    return {
        "last_inference": counts.get(("vae_oip_last_inference_milliseconds", *requests), 0),
        "inference_count": counts.get(("vae_oip_rows_total", *runs), 0),
        "execution_count": counts.get(("vae_oip_runs_total", *runs), 0),
        "inference_stats": {step: duration(step) for step in STEPS} | {"cache_hit": none, "cache_miss": none},
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }
