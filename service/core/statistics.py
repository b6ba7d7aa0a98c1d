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
    """Runs of one graph or function of a model, counted by their number of rows. Written by one thread.

    `labels`: name and version of the model, and the graph or function.
    """

    def __init__(self, metrics: Metrics, *labels: str) -> None:
        self._metrics = metrics
        self._labels = labels
        self._by_rows: dict[int, tuple[Keep, Keep]] = {}

    def add(self, rows: int, ns: int) -> None:
        """Count one run that took `ns` nanoseconds."""
        if (keep := self._by_rows.get(rows)) is None:
            labels = (*self._labels, str(rows))
            keep = self._metrics.oip_runs.labels(*labels).keep, self._metrics.oip_run_ns.labels(*labels).keep
            self._by_rows[rows] = keep
        keep_count, keep_ns = keep
        keep_count(1)
        keep_ns(ns)

    def counted(self, run: Run) -> Run:
        """`run`, with each call that succeeds counted."""

        def counted(*arrays: Any) -> Arrays:
            started = time.perf_counter_ns()
            results = run(*arrays)
            self.add(len(arrays[0]), time.perf_counter_ns() - started)
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
    rows = sorted(int(key[-1]) for key in counts if key[0] == "vae_oip_runs_total" and key[1:-1] == runs)

    def duration(step: str) -> dict[str, int]:
        key = (*requests, step)
        return {
            "count": counts.get(("vae_oip_requests_total", *key), 0),
            "ns": counts.get(("vae_oip_nanoseconds_total", *key), 0),
        }

    def run(rows: int) -> dict[str, int]:
        key = (*runs, str(rows))
        return {
            "count": counts[("vae_oip_runs_total", *key)],
            "ns": counts[("vae_oip_run_nanoseconds_total", *key)],
        }

    none = {"count": 0, "ns": 0}  # clients require the keys, though there is no cache
    return {
        "last_inference": counts.get(("vae_oip_last_inference_milliseconds", *requests), 0),
        "inference_count": sum(each * run(each)["count"] for each in rows),
        "execution_count": sum(run(each)["count"] for each in rows),
        "inference_stats": {step: duration(step) for step in STEPS} | {"cache_hit": none, "cache_miss": none},
        "response_stats": {},
        # Joining and splitting rows is not part of a run; `inference_stats` has the whole time.
        "batch_stats": [
            {"batch_size": each, "compute_input": none, "compute_infer": run(each), "compute_output": none}
            for each in rows
        ],
        "memory_usage": [],
    }
