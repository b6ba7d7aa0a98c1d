"""What the statistics of the Open Inference Protocol count: whole numbers, of one process."""

import time
from dataclasses import dataclass, field
from typing import Any

from service.batcher import Arrays, Run


@dataclass
class Durations:
    """How often something happened, and the nanoseconds that it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Executions:
    """Runs of something by their number of rows. Written by one thread, read by any."""

    of_rows: dict[int, Durations] = field(default_factory=dict)

    def add(self, rows: int, ns: int) -> None:
        self.of_rows.setdefault(rows, Durations()).add(ns)

    def counted(self, run: Run) -> Run:
        """`run`, each of whose calls is counted if it succeeds."""

        def counting(*arrays: Any) -> Arrays:
            started = time.perf_counter_ns()
            results = run(*arrays)
            self.add(len(arrays[0]), time.perf_counter_ns() - started)
            return results

        return counting

    def shown(self) -> dict[str, Any]:
        each = sorted(self.of_rows.copy().items())
        return {
            "inference_count": sum(rows * runs.count for rows, runs in each),
            "execution_count": sum(runs.count for _, runs in each),
            "batch_stats": [
                {
                    "batch_size": rows,
                    # Rows are joined and split outside of a run; `inference_stats` has the whole way.
                    "compute_input": Durations().shown(),
                    "compute_infer": runs.shown(),
                    "compute_output": Durations().shown(),
                }
                for rows, runs in each
            ],
        }


@dataclass
class Requests:
    """The requests for one model of the protocol, and the steps of those that succeeded."""

    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)
    last: int = 0  # milliseconds since 1970

    def succeeded(self, *, total: int, queue: int, read: int, model: int, write: int) -> None:
        """One request, in nanoseconds."""
        self.success.add(total)
        self.queue.add(queue)
        self.compute_input.add(read)
        self.compute_infer.add(model)
        self.compute_output.add(write)
        self.last = time.time_ns() // 1_000_000

    def shown(self) -> dict[str, Any]:
        steps = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        none = Durations().shown()  # there is no cache; readers want the keys all the same
        return {
            "last_inference": self.last,
            "inference_stats": {step: getattr(self, step).shown() for step in steps}
            | {"cache_hit": none, "cache_miss": none},
            "response_stats": {},
            "memory_usage": [],
        }
