"""How cost grows: latency against connections, throughput against batch size and against the model's width.

`python -m benchmarks.serving --curves docs/performance --write docs/performance.md` draws a picture of each.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import ScalarFormatter

from benchmarks.load import Request
from benchmarks.reference import WIDTH, publish_reference
from service.runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from benchmarks.serving import Bench, Server

CONNECTIONS = tuple(2**e for e in range(9))
BATCHES = tuple(2**e for e in range(10))
WIDTHS = (8, 16, 32, 64, 128)
OURS, RAW = "vaeserve", "onnxruntime alone"


def draw(bench: "Bench", folder: Path, pages: list[Path], stack: ExitStack) -> None:
    """A picture of each curve into the folder, and all of them with their figures into the pages."""
    from benchmarks.serving import prepared, write

    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        if width != WIDTH:
            publish_reference(bench.models, f"reference-{width}", width)
    server = prepared(OURS, bench.models, folder)
    assert server
    server.command += ["--default-model", "reference", "--max-images", str(max(BATCHES))]
    stack.callback(server.stop)
    server.start(bench.models.parent / "log")
    matplotlib.use("Agg")
    for name, curve in (("connections", connections), ("batch", batch), ("width", width_of_model)):
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        table = curve(bench, server, axes)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"{name}.svg")
        print(f"{folder / name}.svg\n\n{table}\n")
        for page in pages:
            picture = os.path.relpath(folder / f"{name}.svg", page.parent)
            write(page, name, f"![{axes.get_title()}]({picture})\n\n{table}")


def connections(bench: "Bench", server: "Server", axes: plt.Axes) -> str:
    """One PNG to /encode: latency, and images a second in brackets."""
    request = server.request(server.url)
    lines = ["| connections | images/s | p50 ms | p99 ms |", "|---|---|---|---|"]
    served = [bench.served(server, request, 1, number) for number in CONNECTIONS]
    axes.loglog(CONNECTIONS, [figures.p50 * 1e3 for figures in served], "o-", base=2, label="median")
    axes.loglog(CONNECTIONS, [figures.p99 * 1e3 for figures in served], "o--", base=2, label="p99")
    for number, figures in zip(CONNECTIONS, served, strict=True):
        axes.annotate(f"{figures.rate:,.0f}/s", (number, figures.p50 * 1e3), (0, -12), fontsize=6,
                      textcoords="offset points", ha="center")  # fmt: skip
        lines.append(
            f"| {number} | {figures.rate:,.0f} | {figures.p50 * 1e3:.2f} | {figures.p99 * 1e3:.2f} |"
        )
    axes.set(title="One PNG → /encode → JSON", xlabel="connections", ylabel="milliseconds")
    axes.set_ylim(bottom=0.5)
    axes.legend()
    return "\n".join(lines)


def batch(bench: "Bench", server: "Server", axes: plt.Axes) -> str:
    """npy of n images to /encode as npy, over four connections."""
    from benchmarks.serving import NPY, npy, picture

    ours, alone = [], []
    for rows in BATCHES:
        body = npy(np.broadcast_to(picture()[:, :, None], (rows, 28, 28, 1)))
        request = Request(f"{server.url}/encode", body, NPY, NPY)
        ours.append(bench.served(server, request, rows, 4).rate)
        alone.append(max(bench.raw("encoder", rows, *layout, 1.0).rate for layout in layouts()))
    axes.set(title="n images npy → /encode → npy", xlabel="images of a request, rows of a run")
    return compare(axes, "images", BATCHES, ours, alone)


def width_of_model(bench: "Bench", server: "Server", axes: plt.Axes) -> str:
    """One PNG to /encode over 32 connections, of models from a tenth of the reference's work to ten times."""
    ours, alone = [], []
    for width in WIDTHS:
        model = "reference" if width == WIDTH else f"reference-{width}"
        base = server.request(server.url)
        request = Request(f"{base.url}?model={model}", base.body, base.kind)
        ours.append(bench.served(server, request, 1, 32).rate)
        alone.append(max(bench.raw("encoder", 32, *layout, 1.0, model).rate for layout in layouts()))
    axes.set(title="One PNG → /encode → JSON, 32 connections", xlabel=f"the model's width ({WIDTH} above)")
    return compare(axes, "width", WIDTHS, ours, alone)


def compare(axes: plt.Axes, what: str, x: tuple[int, ...], ours: list[float], alone: list[float]) -> str:
    """Both lines, and their figures as a table."""
    axes.loglog(x, alone, "o--", base=2, color="grey", label=RAW)
    axes.loglog(x, ours, "o-", base=2, label=OURS)
    axes.set(ylabel="images a second")
    axes.legend()
    lines = [f"| {what} | images/s | of {RAW} |", "|---|---|---|"]
    lines += [f"| {n} | {a:,.0f} | {a / b:.2f} |" for n, a, b in zip(x, ours, alone, strict=True)]
    return "\n".join(lines)


def layouts() -> set[tuple[int, int]]:
    """(processes, threads) of onnxruntime alone; the faster one counts."""
    return {(1, usable_cpus()), (usable_cpus(), 1)}
