"""What the statistics of the Open Inference Protocol count: whole numbers, of all workers together.

They are counters beside those of /metrics, and kept as those are (service/core/metrics.py): added up over the
processes by whoever is asked, who may miss what others did in the last fifth of a second.
"""

import time
from collections.abc import Mapping
from typing import Any

from service.core.batcher import Arrays, Run
from service.core.metrics import Keep, Metrics

STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
MODEL = ("model", "version", "name")  # of the VAE, and the function or graph of it

Counts = Mapping[tuple[str, ...], int]  # by the metric's name and its labels


class Executions:
    """Runs of a graph or of a function of one model, by their number of rows. Written by one thread."""

    def __init__(self, metrics: Metrics, *labels: str) -> None:
        self._metrics = metrics
        self._labels = labels
        self._of_rows: dict[int, tuple[Keep, Keep]] = {}

    def add(self, rows: int, ns: int) -> None:
        if (keep := self._of_rows.get(rows)) is None:
            labels = (*self._labels, str(rows))
            keep = self._metrics.runs.labels(*labels).keep, self._metrics.run_ns.labels(*labels).keep
            self._of_rows[rows] = keep
        keep[0](1)
        keep[1](ns)

    def counted(self, run: Run) -> Run:
        """`run`, each of whose calls is counted if it succeeds."""

        def counting(*arrays: Any) -> Arrays:
            started = time.perf_counter_ns()
            results = run(*arrays)
            self.add(len(arrays[0]), time.perf_counter_ns() - started)
            return results

        return counting


class Requests:
    """The requests for one function of one model, and the steps of those that succeeded."""

    def __init__(self, metrics: Metrics, *labels: str) -> None:
        self._steps = {
            step: (metrics.oip.labels(*labels, step).keep, metrics.oip_ns.labels(*labels, step).keep)
            for step in STEPS
        }
        self._last = metrics.oip_last.labels(*labels)

    def failed(self, ns: int) -> None:
        self._add("fail", ns)

    def succeeded(self, **ns: int) -> None:
        """One request: the nanoseconds of each step but `fail`; those of `success` are the whole."""
        for step, spent in ns.items():
            self._add(step, spent)
        self._last.set(time.time_ns() // 1_000_000)

    def _add(self, step: str, ns: int) -> None:
        count, total = self._steps[step]
        count(1)
        total(ns)


def shown(counts: Counts, requests: tuple[str, ...], runs: tuple[str, ...]) -> dict[str, Any]:
    """The statistics of a model of the protocol: of its requests, and of the runs that it stands for."""
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

    none = {"count": 0, "ns": 0}  # there is no cache; readers want the keys all the same
    return {
        "last_inference": counts.get(("vae_oip_last_inference_milliseconds", *requests), 0),
        "inference_count": sum(each * run(each)["count"] for each in rows),
        "execution_count": sum(run(each)["count"] for each in rows),
        "inference_stats": {step: duration(step) for step in STEPS} | {"cache_hit": none, "cache_miss": none},
        "response_stats": {},
        # Rows are joined and split outside of a run; `inference_stats` has the whole way.
        "batch_stats": [
            {"batch_size": each, "compute_input": none, "compute_infer": run(each), "compute_output": none}
            for each in rows
        ],
        "memory_usage": [],
    }
