"""Measures servers and raw onnxruntime on the same graph, and repeats a measurement that was disturbed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import machine
from benchmarks.contenders import Server, picture
from benchmarks.load import Request, measure
from vaeserve.bundle.cpus import usable_cpus

# The share of the CPU that the host and other programs may use; above it the measurement is repeated.
DISTURBED = 0.08
REPEATS = 3


@dataclass(frozen=True)
class Figures:
    """One measurement of one server."""

    rate: float  # images a second
    p50: float  # seconds
    p99: float
    bad: int = 0
    server_cpu: float = 0.0  # CPU seconds per answer
    client_cpu: float = 0.0


def middle(rounds: list[Figures]) -> Figures:
    """The median of each figure."""
    names = Figures.__dataclass_fields__
    return Figures(*(median(getattr(each, name) for each in rounds) for name in names))


class Bench:
    """Measures, and repeats what was disturbed until `patience` seconds have passed."""

    def __init__(self, models: Path, seconds: float, patience: float) -> None:
        self.models = models
        self.seconds = seconds
        self.disturbed: list[float] = []  # the share of the CPU that others used, of each measurement kept
        self.repeated = 0
        self.patient_until = time.monotonic() + patience

    def graph(self, name: str, model: str = "reference") -> Path:
        return self.models / model / f"1/{name}.onnx"

    def mean(self) -> np.ndarray:
        """The encoder's mean of the picture, float32 [32]."""
        from vaeserve.bundle.ort import ort

        session = ort.InferenceSession(self.graph("encoder").read_bytes())
        (mean,) = session.run(["mean"], {"image": picture()[None, :, :, None]})
        return mean[0]

    def undisturbed(self, once: Callable[[], tuple[Figures, float]]) -> Figures:
        """The least disturbed result of `once`, which also returns the CPU seconds of its own processes."""
        tries = []
        for _ in range(1 + REPEATS):
            before = machine.cpu()
            result, own = once()
            cpu = machine.cpu() - before
            tries.append((max(0.0, cpu.stolen + cpu.busy - own) / cpu.total, result))
            if tries[-1][0] <= DISTURBED or time.monotonic() > self.patient_until:
                break
            self.repeated += 1
        disturbed, result = min(tries, key=lambda found: found[0])
        self.disturbed.append(disturbed)
        return result

    def conditions(self) -> str:
        """One sentence on the machine and on what disturbed the measurements."""
        plural = "measurement was" if self.repeated == 1 else "measurements were"
        return (
            f"{usable_cpus()} CPUs, of which the host and other programs used {median(self.disturbed):.1%} "
            f"(median; {max(self.disturbed):.1%} at most); {self.repeated} {plural} repeated"
        )

    def raw(
        self,
        graph: str,
        batch: int,
        processes: int,
        threads: int,
        seconds: float,
        model: str = "reference",
    ) -> Figures:
        def once() -> tuple[Figures, float]:
            command = [sys.executable, "-m", "benchmarks.raw", str(self.graph(graph, model)), str(batch)]
            command += [str(threads), str(seconds)]
            workers = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            for worker in workers:
                assert worker.stdout
                worker.stdout.readline()
            before = os.times()
            answers = [worker.communicate("\n")[0].split() for worker in workers]
            own = os.times()
            used = own.children_user + own.children_system - before.children_user - before.children_system
            rates, medians = zip(*((float(rate), float(took)) for rate, took in answers), strict=True)
            return Figures(sum(rates), median(medians), 0.0), used

        return self.undisturbed(once)

    def best(self, graph: str, batches: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, processes, threads) with which onnxruntime alone is fastest on this machine."""
        cpus = usable_cpus()
        tried = {
            (batch, *layout): self.raw(graph, batch, *layout, 0.7).rate
            for batch in batches
            for layout in sorted({(1, 1), (1, cpus), (cpus, 1)})
        }
        return max(tried, key=tried.__getitem__)

    def served(self, server: Server, request: Request, rows: int, connections: int) -> Figures:
        def once() -> tuple[Figures, float]:
            before = machine.used(server.pids)
            load = measure(request, connections=connections, seconds=self.seconds)
            spent = machine.used(server.pids) - before
            answers = max(1, load.answers)
            cpu = (spent / answers, load.cpu / answers)
            return Figures(load.rate * rows, load.p50, load.p99, load.bad, *cpu), spent + load.cpu

        with server.awake():
            measure(request, connections=connections, seconds=1)  # warm up
            return self.undisturbed(once)
