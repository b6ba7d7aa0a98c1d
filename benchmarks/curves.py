"""Plots latency against connections, and throughput against batch size and model width.

    python -m benchmarks.curves docs/performance --write docs/performance.md

Each round measures every point once. For each curve the medians become a picture and a sentence, which are
written into the page. `--json FILE` keeps all rounds and adds them to those already in the file, which splits
a long measurement; `--rounds 0` plots the rounds in the file.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.bench import Bench, Figures, middle
from benchmarks.contenders import NPY, OURS, Server, npy, ours, picture
from benchmarks.load import Request
from benchmarks.reference import WIDTH, build, publish_reference
from benchmarks.serving import write
from vaeserve.bundle.cpus import usable_cpus

CONNECTIONS = tuple(2**e for e in range(9))
BATCHES = tuple(2**e for e in range(10))
WIDTHS = (8, 16, 32, 64, 128)
RAW = "onnxruntime alone"
RAW_SECONDS = 0.5
NEARLY = 0.9  # of the highest rate; beyond it more rows or connections add little
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#767676", "#222222"  # distinct for colour-blind readers too
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "svg.hashsalt": "curves",  # the same figures make the same file
}

Sample = tuple[str, int, Figures]  # the line, the place on the x axis, the measurement
Lines = dict[str, dict[int, Figures]]  # the lines of a curve: medians by x


@dataclass(frozen=True)
class Curve:
    """How one curve is measured (each point once), plotted, and summarised."""

    measure: Callable[[Bench, Server], Iterator[Sample]]
    draw: Callable[[Lines], Figure]
    sentence: Callable[[Lines], str]
    heads: tuple[str, ...]
    row: Callable[[Lines, int], tuple[str, ...]]


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds the stack, which stops the server
    rounds = read(options.json)
    if options.rounds:
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bench = Bench(options.models or work / "models", options.seconds, options.patience)
            server = started(bench, work, stack)
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
                for name in options.only:
                    for line, x, figures in CURVES[name].measure(bench, server):
                        rounds.setdefault(name, {}).setdefault(line, {}).setdefault(x, []).append(figures)
        print(bench.conditions(), file=sys.stderr)
        keep(options.json, rounds)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if name in rounds:
            show(name, rounds[name], options.folder, options.write)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the pictures")
    parser.add_argument("--only", nargs="*", choices=CURVES, default=list(CURVES), help="[default: all]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="for each point in each round")
    parser.add_argument(
        "--patience", type=float, default=240, help="seconds after which no measurement is repeated"
    )
    parser.add_argument("--models", type=Path, help="folder that keeps the networks for the next run")
    parser.add_argument("--json", type=Path, help="file to keep the rounds in; rounds already in it count")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], metavar="PAGE", help="pages to write the pictures into"
    )
    return parser.parse_args()


def started(bench: Bench, work: Path, stack: ExitStack) -> Server:
    """The service with the reference network at every width."""
    for width in WIDTHS:
        publish_reference(bench.models, model(width), width)
    server = ours(bench.models)
    server.command += ["--default-model", model(WIDTH), "--max-images", str(max(BATCHES))]
    stack.callback(server.stop)
    server.start(work / "log")
    return server


def model(width: int) -> str:
    return "reference" if width == WIDTH else f"reference-{width}"


def measure_connections(bench: Bench, server: Server) -> Iterator[Sample]:
    """One PNG to /encode."""
    for number in CONNECTIONS:
        yield OURS, number, bench.served(server, server.request(server.url), 1, number)


def measure_batch(bench: Bench, server: Server) -> Iterator[Sample]:
    """n images as npy to /encode, answered as npy, over four connections."""
    for rows in BATCHES:
        body = npy(np.broadcast_to(picture()[:, :, None], (rows, 28, 28, 1)))
        request = Request(f"{server.url}/encode", body, NPY, NPY)
        yield OURS, rows, bench.served(server, request, rows, 4)
        yield RAW, rows, alone(bench, rows, model(WIDTH))


def measure_width(bench: Bench, server: Server) -> Iterator[Sample]:
    """One PNG to /encode over 32 connections, for models of a tenth to ten times the reference's work."""
    base = server.request(server.url)
    for width in WIDTHS:
        request = Request(f"{base.url}?model={model(width)}", base.body, base.kind)
        yield OURS, width, bench.served(server, request, 1, 32)
        yield RAW, width, alone(bench, 32, model(width))


def alone(bench: Bench, rows: int, name: str) -> Figures:
    """onnxruntime alone, with threads or with processes, whichever is faster."""
    layouts = {(1, usable_cpus()), (usable_cpus(), 1)}
    found = [bench.raw("encoder", rows, *layout, RAW_SECONDS, name) for layout in sorted(layouts)]
    return max(found, key=lambda figures: figures.rate)


def draw_connections(lines: Lines) -> Figure:
    served = lines[OURS]
    x = sorted(served)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.3), layout="constrained")
    plot(left, x, [served[n].p50 * 1e3 for n in x], BLUE, "median")
    plot(left, x, [served[n].p99 * 1e3 for n in x], ORANGE, "99th percentile", above=True)
    axis(left, x, "connections", "ms", "Latency of one PNG → /encode → JSON")
    right.plot(x, [served[n].rate for n in x], "o-", color=BLUE)
    axis(right, x, "connections", "images/s", "Throughput", log=False)
    return figure


def draw_batch(lines: Lines) -> Figure:
    return compared(
        lines, "images in a request; rows in a run", "Images as npy → /encode → npy, 4 connections"
    )


def draw_width(lines: Lines) -> Figure:
    labels = {width: f"{width}\n{millions(width):.2g} M" for width in lines[OURS]}
    title = "One PNG → /encode → JSON, 32 connections"
    return compared(lines, "width of the network, and parameters of its encoder", title, labels)


def compared(lines: Lines, what: str, title: str, labels: dict[int, str] | None = None) -> Figure:
    """The service and onnxruntime alone; each point of the service shows its share of the latter."""
    x = sorted(lines[OURS])
    figure, axes = plt.subplots(figsize=(7.4, 3.6), layout="constrained")
    plot(axes, x, [lines[RAW][n].rate for n in x], GREY, RAW, above=True)
    plot(axes, x, [lines[OURS][n].rate for n in x], BLUE, OURS)
    for n in x:
        axes.annotate(f"{share(lines, n):.2f}", (n, lines[OURS][n].rate), (0, -13), color=BLUE, fontsize=8,
                      textcoords="offset points", ha="center")  # fmt: skip
    axis(axes, x, what, "images/s", title, labels)
    return figure


def plot(axes: Axes, x: list[int], y: list[float], colour: str, name: str, *, above: bool = False) -> None:
    """A line with its name at its end; `above` for the upper of two lines that may end close together."""
    axes.loglog(x, y, "o-", color=colour)
    axes.annotate(name, (x[-1], y[-1]), (14, 1 if above else -1), color=colour, weight="bold",
                  textcoords="offset points", va="bottom" if above else "top")  # fmt: skip


def axis(
    axes: Axes,
    x: list[int],
    what: str,
    unit: str,
    title: str,
    labels: dict[int, str] | None = None,
    *,
    log: bool = True,
) -> None:
    axes.set(title=title, xlabel=what, ylabel=unit)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [labels[n] if labels else str(n) for n in x])
    axes.xaxis.set_minor_locator(NullLocator())
    if log:
        low, high = axes.get_ylim()
        low, high = low / 1.4, high * 1.2  # room for the shares below the points
        axes.set_yticks([m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)


def tell_connections(lines: Lines) -> str:
    served = lines[OURS]
    least, most = min(served), max(served)
    full = next(n for n in sorted(served) if served[n].rate >= NEARLY * highest(served))
    return (
        f"The service reaches {NEARLY:.0%} of its {highest(served):,.0f} images/s with {full} connections. "
        f"The median latency is {served[least].p50 * 1e3:.1f} ms over one connection, "
        f"{served[full].p50 * 1e3:.1f} over {full} and {served[most].p50 * 1e3:.0f} over {most}; the 99th "
        f"percentile over {most} is {served[most].p99 * 1e3:.0f} ms."
    )


def tell_batch(lines: Lines) -> str:
    x = sorted(lines[OURS])
    full = first_full({n: figures.rate for n, figures in lines[RAW].items()})
    best = max(x, key=lambda n: share(lines, n))
    return (
        f"With one image per request the service reaches {share(lines, x[0]):.2f} of onnxruntime alone, "
        f"with {best} it reaches {share(lines, best):.2f}; onnxruntime alone reaches {NEARLY:.0%} of "
        f"its highest rate with {full} rows."
    )


def tell_width(lines: Lines) -> str:
    parts = [f"{share(lines, n):.2f} with {millions(n):.2g} M" for n in (min(WIDTHS), WIDTH, max(WIDTHS))]
    return f"The service's share of onnxruntime alone is {', '.join(parts)} parameters in the encoder."


def row_connections(lines: Lines, n: int) -> tuple[str, ...]:
    served = lines[OURS][n]
    return f"{served.rate:,.0f}", f"{served.p50 * 1e3:.2f}", f"{served.p99 * 1e3:.2f}"


def row_compared(lines: Lines, n: int) -> tuple[str, ...]:
    return f"{lines[OURS][n].rate:,.0f}", f"{lines[RAW][n].rate:,.0f}", f"{share(lines, n):.2f}"


def share(lines: Lines, n: int) -> float:
    return lines[OURS][n].rate / lines[RAW][n].rate


def highest(line: dict[int, Figures]) -> float:
    return max(figures.rate for figures in line.values())


def first_full(rates: dict[int, float]) -> int:
    """The smallest x with nearly the highest rate."""
    return min(x for x, rate in rates.items() if rate >= NEARLY * max(rates.values()))


def millions(width: int) -> float:
    """Parameters of the encoder, in millions."""
    return sum(weights.numel() for weights in build(width).encoder.parameters()) / 1e6


COMPARED = (f"{OURS}, images/s", f"{RAW}, images/s", "share")
CURVES = {
    "connections": Curve(
        measure_connections,
        draw_connections,
        tell_connections,
        ("images/s", "p50 ms", "p99 ms"),
        row_connections,
    ),
    "batch": Curve(measure_batch, draw_batch, tell_batch, COMPARED, row_compared),
    "width": Curve(measure_width, draw_width, tell_width, COMPARED, row_compared),
}
Rounds = dict[str, dict[str, dict[int, list[Figures]]]]  # by curve, line and x


def show(name: str, rounds: dict[str, dict[int, list[Figures]]], folder: Path, pages: list[Path]) -> None:
    """Write the picture into the folder; print its sentence and table, and write them into the pages."""
    curve = CURVES[name]
    lines = {line: {x: middle(each) for x, each in points.items()} for line, points in rounds.items()}
    matplotlib.use("Agg")
    with plt.rc_context(STYLE):
        figure = curve.draw(lines)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    count = min(len(each) for points in rounds.values() for each in points.values())
    made = f"Medians of {count} rounds" if count > 1 else "One round"
    table = [f"| {name} | {' | '.join(curve.heads)} |", "|---" * (1 + len(curve.heads)) + "|"]
    table += [f"| {x} | {' | '.join(curve.row(lines, x))} |" for x in sorted(lines[OURS])]
    sentence = curve.sentence(lines)
    print("\n".join([str(path), sentence, *table, ""]))
    figures = f"<details><summary>{made}</summary>\n\n{chr(10).join(table)}\n\n</details>"
    for page in pages:
        where = os.path.relpath(path, page.parent)
        write(page, name, f"{sentence}\n\n![{sentence}]({where})\n\n{figures}")


def read(path: Path | None) -> Rounds:
    """The rounds kept in the file; none if there is no file."""
    if path is None or not path.exists():
        return {}
    return {
        name: {
            line: {int(x): [Figures(**figures) for figures in each] for x, each in points.items()}
            for line, points in lines.items()
        }
        for name, lines in json.loads(path.read_text()).items()
    }


def keep(path: Path | None, rounds: Rounds) -> None:
    if path is not None:
        path.write_text(json.dumps(rounds, default=vars, indent=1) + "\n")


if __name__ == "__main__":
    main()
