"""Compares the service with raw onnxruntime and other servers on `reference@1`.

All servers are stopped (SIGSTOP) except the one being measured. Rounds interleave the servers, so that all
see the same conditions; a measurement during which the host or another program used the CPU is repeated.
Third-party servers run in environments of their own, which are created in --peers. `--only --against DIR`
compares this version with the one in another checkout and nothing else.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.bench import Bench, Figures, middle
from benchmarks.contenders import FILES, NPY, Server, npy, ours, peer, picture, tensors
from benchmarks.load import LoadError, Request
from benchmarks.reference import publish_reference

TENSOR = ", raw tensor over /v2"  # the same request as Triton's, without a PNG to decode
RAW = "raw onnxruntime"

Rounds = dict[str, list[Figures]]
Pairs = dict[str, list[tuple[Figures, Figures]]]  # raw onnxruntime, and the service


@dataclass(frozen=True)
class Scenario:
    """A row of the second table: a request to the service, compared with a run of a graph by onnxruntime."""

    title: str
    path: str
    rows: int
    graph: str
    connections: int
    body: bytes = b""
    accept: str = NPY

    def request(self, url: str) -> Request:
        return Request(url + self.path, self.body, NPY, self.accept)


IMAGES = npy(np.broadcast_to(picture()[:, :, None], (256, 28, 28, 1)))
SCENARIOS = (
    Scenario("256 images npy → npy", "/encode", 256, "encoder", 4, IMAGES),
    Scenario("/sample?n=64 → one PNG", "/sample?n=64&seed=7", 64, "decoder", 4, accept="image/png"),
)


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds the stack, which stops the servers
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = work / "models"
        publish_reference(models)
        bench = Bench(models, options.seconds, options.patience)
        versions = [ours(models), *(ours(models, folder) for folder in options.against)]
        names = [name for name in FILES if options.only is None or name in options.only]
        others = [server for name in names if (server := peer(name, models, options.peers))]
        running = []
        for number, server in enumerate([*versions, *others]):
            stack.callback(server.stop)
            try:
                server.start(work / f"{number}.log")
                server.check(bench.mean())
            except (RuntimeError, ValueError) as error:
                if server in versions:
                    raise SystemExit(str(error)) from None
                print(f"skipped: {error}", file=sys.stderr)
                server.stop()
                continue
            machine.send(signal.SIGSTOP, server.pids)
            running.append(server)
        report(bench, *run(bench, versions, running, options), options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help=f"other servers to measure, from {', '.join(FILES)}"
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="checkouts of other versions of vaeserve to measure in the same rounds",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="for each server in each round")
    parser.add_argument(
        "--patience", type=float, default=420, help="seconds after which no measurement is repeated"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--peers", type=Path, default=Path(".venv/peers"), help="environments of third-party servers"
    )
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], metavar="PAGE", help="pages to write the tables into"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures of all rounds to")
    return parser.parse_args()


def run(
    bench: Bench, versions: list[Server], servers: list[Server], options: argparse.Namespace
) -> tuple[str, Rounds, Pairs]:
    """The best layout of raw onnxruntime in words, and the rounds of both tables by row."""
    layout = bench.best("encoder", (8, 16, 32, 64, 128, 256))
    layouts = {each: bench.best(each.graph, (each.rows,)) for each in SCENARIOS}
    singles: Rounds = defaultdict(list)
    pairs: Pairs = defaultdict(list)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        singles[RAW].append(bench.raw("encoder", *layout, bench.seconds))
        for server in list(servers):
            request = server.request(server.url)
            try:
                singles[server.name].append(bench.served(server, request, 1, options.connections))
            except LoadError as error:  # some do not survive being stopped for minutes
                print(f"{server.name} is skipped from round {number + 1} on: {error}", file=sys.stderr)
                servers.remove(server)
        for server in versions:
            request = tensors(server.url, "reference.encode")
            singles[server.name + TENSOR].append(bench.served(server, request, 1, options.connections))
        for each in SCENARIOS:
            raw = bench.raw(each.graph, *layouts[each], bench.seconds)
            for server in versions:
                found = bench.served(server, each.request(server.url), each.rows, each.connections)
                pairs[f"{server.name}: {each.title}"].append((raw, found))
        raw = bench.raw("encoder", 1, 1, 1, bench.seconds / 2)
        for server in versions:
            found = bench.served(server, server.request(server.url), 1, 1)
            pairs[f"{server.name}: one PNG, one connection"].append((raw, found))
    batch, processes, threads = layout
    return f"batch {batch}, {processes} × {threads} threads", singles, pairs


def report(bench: Bench, layout: str, singles: Rounds, pairs: Pairs, options: argparse.Namespace) -> None:
    """Print both tables, and write them where the options say."""
    raw = middle(singles[RAW])
    lines = [
        f"One PNG → /encode → JSON, {options.connections} connections; medians of {options.rounds} rounds:",
        "",
        "| | images/s | of raw onnxruntime | p50 ms | p99 ms | CPU µs an image | errors |",
        "|---|---|---|---|---|---|---|",
        f"| {RAW}, {layout} | {raw.rate:,.0f} | 1.00 | | | | |",
    ]
    for name in sorted(singles.keys() - {RAW}, key=lambda name: -middle(singles[name]).rate):
        it, count = middle(singles[name]), len(singles[name])
        rounds = "" if count == options.rounds else f" ({count} of {options.rounds} rounds)"
        lines.append(
            f"| {name}{rounds} | {it.rate:,.0f} | {it.rate / raw.rate:.2f} | {it.p50 * 1e3:.1f} | "
            f"{it.p99 * 1e3:.1f} | {it.server_cpu * 1e6:.0f} | {it.bad:.0f} |"
        )
    lines += [
        "",
        "| | images/s | of raw onnxruntime | p50 ms | raw p50 ms | CPU µs a request |",
        "|---|---|---|---|---|---|",
    ]
    for title, rows in pairs.items():
        alone, served = (middle(list(each)) for each in zip(*rows, strict=True))
        lines.append(
            f"| {title} | {served.rate:,.0f} | {served.rate / alone.rate:.2f} | {served.p50 * 1e3:.2f} | "
            f"{alone.p50 * 1e3:.2f} | {served.server_cpu * 1e6:.0f} |"
        )
    client = middle([each for name in singles.keys() - {RAW} for each in singles[name]]).client_cpu
    lines += ["", f"{bench.conditions()}; the load client used {client * 1e6:.0f} µs of CPU per answer."]
    print("\n" + "\n".join(lines))
    for page in options.write:
        write(page, "serving", "\n".join(lines))
    if options.json:
        figures = {name: [vars(each) for each in rounds] for name, rounds in singles.items()}
        options.json.write_text(json.dumps(figures, indent=1))


def write(page: Path, part: str, text: str) -> None:
    """Replace the figures between the page's markers."""
    begin, end = f"<!-- measured: {part} -->\n", "<!-- end: measured -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} lacks the lines {begin.strip()} and {end}; add them where the figures go")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
