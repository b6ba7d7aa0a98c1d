"""The service beside raw onnxruntime and other servers, all on `reference@1`: `python -m benchmarks.serving`.

Every server but the one being measured is stopped (SIGSTOP). Rounds interleave, so that all meet the same
weather; a round in which the host stole CPU, or another program used it, is repeated. Other people's servers
run in an environment of their own, which is made in --peers when it is not there.
"""

import argparse
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.load import Load, LoadError, Request, measure
from benchmarks.reference import publish_reference
from vaeserve.bundle.cpus import usable_cpus

HERE = Path(__file__).parent
DISTURBED = 0.08  # of the CPU, stolen by the host or used by other programs: a round with more is repeated
REPEATS = 3
NPY = "application/x-npy"

# Other people's servers → what pip installs for them.
PACKAGES = {
    "LitServe": ["litserve", "onnxruntime", "pillow", "python-multipart"],
    "BentoML": ["bentoml", "onnxruntime", "pillow"],
    "Triton, python backend": ["nvidia-pytriton", "onnxruntime"],
}
FILES = {
    "bare ASGI": "bare.py",
    "naive FastAPI": "naive.py",
    "LitServe": "litserver.py",
    "BentoML": "bento.py",
    "Triton, python backend": "tritonserver.py",
}
OURS = "vaeserve"
OURS_RAW = "vaeserve, raw tensor over /v2"  # asked for what Triton is asked for: no PNG to be decoded
RAW = "raw onnxruntime"


def picture() -> np.ndarray:
    """A drawn digit's likeness, uint8 [28, 28]: strokes on black, as compressible as MNIST's."""
    y, x = np.mgrid[:28, :28]
    ring = np.abs(np.hypot((y - 14) * 0.8, x - 14) - 8)
    return np.clip(255 * (2 - ring), 0, 255).astype(np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def form(data: bytes, name: str) -> tuple[bytes, str]:
    """One file as multipart/form-data: the body and its media type."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--x--\r\n", (
        "multipart/form-data; boundary=x"
    )


@dataclass(eq=False)
class Server:
    """A server in processes of its own, asleep unless it is being measured."""

    name: str
    command: list[str]
    request: Callable[[str], Request]  # of its URL: one PNG to be encoded
    folder: Path = HERE.parent  # the checkout whose code runs
    port: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        return machine.tree(self.process.pid)

    def start(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [part.replace("{port}", str(self.port)) for part in self.command]
        with log.open("wb") as file:
            # Triton's backend wants the libpython of the interpreter whose environment it is in.
            libraries = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
            environment = os.environ | {"PYTHONPATH": str(self.folder)} | libraries
            # `python -m` looks into the working directory first, so that has to be the checkout too.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, cwd=self.folder
            )
        until = time.monotonic() + 90
        while (status := self.ask()[0]) != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} does not answer ({status}):\n{log.read_text()[-2000:]}")
            time.sleep(0.2)

    def ask(self) -> tuple[int, bytes]:
        """Status and body of one answer; status 0 when there is none."""
        request = self.request(self.url)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            target = request.url.removeprefix(self.url)
            connection.request(request.method, target, request.body or None, request.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    @contextmanager
    def awake(self) -> Iterator[None]:
        machine.send(signal.SIGCONT, self.pids)
        try:
            yield
        finally:
            machine.send(signal.SIGSTOP, self.pids)

    def stop(self) -> None:
        if hasattr(self, "process"):
            pids = self.pids
            machine.send(signal.SIGCONT, pids)
            machine.send(signal.SIGTERM, pids)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            machine.send(signal.SIGKILL, pids)
            self.process.wait()


@dataclass(frozen=True)
class Figures:
    """One round of one contender."""

    rate: float  # images a second
    p50: float  # seconds
    p99: float
    bad: int = 0
    server_cpu: float = 0.0  # seconds of CPU for each answer
    client_cpu: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """A row of the second table: one request of ours against a run of a graph by onnxruntime alone."""

    title: str
    path: str
    rows: int
    graph: str
    connections: int
    body: bytes = b""
    kind: str = NPY
    accept: str = NPY

    def request(self, url: str) -> Request:
        return Request(url + self.path, self.body, self.kind, self.accept)


SCENARIOS = (
    Scenario(
        "256 images npy → npy",
        "/encode",
        256,
        "encoder",
        4,
        npy(np.broadcast_to(picture()[:, :, None], (256, 28, 28, 1))),
    ),
    Scenario("/sample?n=64 → one PNG", "/sample?n=64&seed=7", 64, "decoder", 4, accept="image/png"),
)


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is left behind
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = work / "models"
        publish_reference(models)
        bench = Bench(models, options.seconds, options.patience)
        names = [name for name in FILES if options.only is None or name in options.only]
        servers = [ours(models), *(ours(models, folder) for folder in options.against)]
        servers += [server for name in names if (server := prepared(name, models, options.peers))]
        running = []
        for server in servers:
            stack.callback(server.stop)
            try:
                server.start(work / f"{server.name}.log")
                check(server, bench.mean())
            except (RuntimeError, ValueError) as error:
                print(f"left out: {error}", file=sys.stderr)
                server.stop()
                continue
            machine.send(signal.SIGSTOP, server.pids)
            running.append(server)
        if not running or running[0].name != OURS:
            raise SystemExit("the service itself did not start")
        singles, others = bench.run(running, options)
        report(bench, singles, others, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="NAME",
        help=f"other servers to measure, none or some of {', '.join(FILES)}",
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
    parser.add_argument("--seconds", type=float, default=4, help="of each contender in each round")
    parser.add_argument(
        "--patience", type=float, default=420, help="seconds after which nothing is repeated any more"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--peers", type=Path, default=Path(".venv/peers"), help="environments for other people's servers"
    )
    parser.add_argument(
        "--write",
        type=Path,
        nargs="*",
        default=[],
        metavar="PAGE",
        help="documents to put the tables into",
    )
    parser.add_argument("--json", type=Path, help="also write every figure of every round there")
    return parser.parse_args()


def ours(models: Path, folder: Path | None = None) -> Server:
    """This version of vaeserve, or the version in another checkout."""
    name = OURS if folder is None else f"{OURS} in {folder.resolve().name}"
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "{port}"]
    folder = HERE.parent if folder is None else folder.resolve()
    return Server(name, command, lambda url: Request(f"{url}/encode", png(), "image/png"), folder)


def prepared(name: str, models: Path, peers: Path) -> Server | None:
    """The server, with its environment; None when that cannot be made."""
    python = sys.executable
    if name in PACKAGES:
        folder = peers / "".join(filter(str.isalpha, name)).lower()
        python = str(folder.absolute() / "bin/python")
        if not (folder / "ready").exists():
            print(f"{name}: installing into {folder}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES[name]]
            if subprocess.run(pip).returncode:
                print(f"left out: {name} could not be installed", file=sys.stderr)
                return None
            (folder / "ready").touch()
    command = [python, str(HERE / "peers" / FILES[name]), str(models), "{port}"]
    if name == "Triton, python backend":
        return Server(name, command, lambda url: tensors(url, "encode"))
    body, kind = png(), "image/png"
    if name == "LitServe":
        body, kind = form(body, "image")
    if name == "BentoML":
        body, kind = form(body, "images")
    return Server(name, command, lambda url: Request(f"{url}/encode", body, kind))


def tensors(url: str, model: str) -> Request:
    """The picture, for a model of that name, in the Open Inference Protocol, its pixels as they are."""
    pixels = picture().tobytes()
    size = {"binary_data_size": len(pixels)}
    head = json.dumps(
        {
            "inputs": [{"name": "image", "shape": [1, 28, 28, 1], "datatype": "UINT8", "parameters": size}],
            "outputs": [{"name": "mean", "parameters": {"binary_data": False}}],
        }
    ).encode()
    length = (("Inference-Header-Content-Length", str(len(head))),)
    kind = "application/octet-stream"
    return Request(f"{url}/v2/models/{model}/infer", head + pixels, kind, "*/*", length)


def check(server: Server, expected: np.ndarray) -> None:
    """That the server computes what it is asked for: a fast wrong answer wins nothing."""
    if server.name == "bare ASGI":
        return
    answer = json.loads(server.ask()[1])
    if "outputs" in answer:
        answer = {"mean": answer["outputs"][0]["data"]}
    mean = np.array(answer["mean"] if isinstance(answer, dict) else answer)
    if mean.reshape(-1).shape != expected.shape or np.abs(mean.reshape(-1) - expected).max() > 1e-3:
        raise ValueError(f"{server.name} answers {mean}")


class Bench:
    """Measures, and repeats what was disturbed."""

    def __init__(self, models: Path, seconds: float, patience: float) -> None:
        self.models = models
        self.seconds = seconds
        self.disturbed: list[float] = []  # of each figure that counts
        self.repeated = 0
        self.patient_until = time.monotonic() + patience

    def graph(self, name: str, model: str = "reference") -> Path:
        return self.models / model / f"1/{name}.onnx"

    def mean(self) -> np.ndarray:
        """What the encoder says of the picture."""
        from vaeserve.bundle.ort import ort

        session = ort.InferenceSession(self.graph("encoder").read_bytes())
        (mean,) = session.run(["mean"], {"image": picture()[None, :, :, None]})
        return mean[0]

    def undisturbed(self, once: Callable[[], tuple[Any, float]]) -> Any:
        """The result of `once`, which also says how much CPU its processes used; the least disturbed."""
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

    def served(self, server: Server, request: Request, rows: int, connections: int) -> Figures:
        def once() -> tuple[Figures, float]:
            before = machine.used(server.pids)
            load: Load = measure(request, connections=connections, seconds=self.seconds)
            spent = machine.used(server.pids) - before
            answers = max(1, load.answers)
            figures = Figures(
                load.rate * rows, load.p50, load.p99, load.bad, spent / answers, load.cpu / answers
            )
            return figures, spent + load.cpu

        with server.awake():
            measure(request, connections=connections, seconds=1)  # warm
            return self.undisturbed(once)

    def best(self, graph: str, batches: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, processes, threads) with which onnxruntime alone is fastest here."""
        cpus = usable_cpus()
        layouts = {(1, 1), (1, cpus), (cpus, 1)}
        tried = {
            (batch, *layout): self.raw(graph, batch, *layout, 0.7).rate
            for batch in batches
            for layout in sorted(layouts)
        }
        return max(tried, key=tried.__getitem__)

    def run(self, servers: list[Server], options: argparse.Namespace) -> Any:
        self.encoder = self.best("encoder", (8, 16, 32, 64, 128, 256))
        self.scenarios = {each: self.best(each.graph, (each.rows,)) for each in SCENARIOS}
        singles: dict[str, list[Figures]] = defaultdict(list)
        others: dict[str, list[tuple[Figures, Figures]]] = defaultdict(list)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            singles[RAW].append(self.raw("encoder", *self.encoder, self.seconds))
            for server in list(servers):
                request = server.request(server.url)
                try:
                    singles[server.name].append(self.served(server, request, 1, options.connections))
                except LoadError as error:  # some do not survive being stopped for minutes
                    print(f"{server.name} is left out from round {number + 1} on: {error}", file=sys.stderr)
                    servers.remove(server)
            ours = servers[0]
            request = tensors(ours.url, "reference.encode")
            singles[OURS_RAW].append(self.served(ours, request, 1, options.connections))
            for each in SCENARIOS:
                raw = self.raw(each.graph, *self.scenarios[each], self.seconds)
                request = each.request(ours.url)
                others[each.title].append((raw, self.served(ours, request, each.rows, each.connections)))
            raw = self.raw("encoder", 1, 1, 1, self.seconds / 2)
            alone = self.served(ours, ours.request(ours.url), 1, 1)
            others["one PNG, one connection"].append((raw, alone))
        return singles, others


def middle(rounds: list[Figures]) -> Figures:
    """The median round by rate, with the median of everything else."""
    return Figures(
        *(
            median(getattr(each, name) for each in rounds)
            for name in ("rate", "p50", "p99", "bad", "server_cpu", "client_cpu")
        )
    )


def report(bench: Bench, singles: Any, others: Any, options: Any) -> None:
    raw = middle(singles[RAW])
    batch, processes, threads = bench.encoder
    what = f"One PNG → /encode → JSON, {options.connections} connections"
    lines = [
        f"{what}; medians of {options.rounds} rounds:",
        "",
        "| | images/s | of raw onnxruntime | p50 ms | p99 ms | CPU µs an image | errors |",
        "|---|---|---|---|---|---|---|",
        f"| {RAW}, batch {batch}, {processes} × {threads} threads | {raw.rate:,.0f} | 1.00 | | | | |",
    ]
    for name in sorted(singles.keys() - {RAW}, key=lambda name: -middle(singles[name]).rate):
        it = middle(singles[name])
        told = (
            ""
            if len(singles[name]) == options.rounds
            else f" ({len(singles[name])} of {options.rounds} rounds)"
        )
        lines.append(
            f"| {name}{told} | {it.rate:,.0f} | {it.rate / raw.rate:.2f} | {it.p50 * 1e3:.1f} | "
            f"{it.p99 * 1e3:.1f} | {it.server_cpu * 1e6:.0f} | {it.bad:.0f} |"
        )
    lines += [
        "",
        f"| {OURS} | images/s | of raw onnxruntime | p50 ms | raw p50 ms |",
        "|---|---|---|---|---|",
    ]
    for title, rounds in others.items():
        theirs, ours = middle([raw for raw, _ in rounds]), middle([served for _, served in rounds])
        lines.append(
            f"| {title} | {ours.rate:,.0f} | {ours.rate / theirs.rate:.2f} | {ours.p50 * 1e3:.2f} | "
            f"{theirs.p50 * 1e3:.2f} |"
        )
    client = middle([each for name in singles.keys() - {RAW} for each in singles[name]]).client_cpu
    lines += [
        "",
        f"{usable_cpus()} CPUs, of which the host or others took {median(bench.disturbed):.1%} (median; "
        f"at worst {max(bench.disturbed):.1%}) while this was measured, {bench.repeated} measurements were "
        f"repeated; the load client took {client * 1e6:.0f} µs of CPU an answer.",
    ]
    print("\n" + "\n".join(lines))
    for page in options.write:
        write(page, "serving", "\n".join(lines))
    if options.json:
        figures = {name: [vars(each) for each in rounds] for name, rounds in singles.items()}
        options.json.write_text(json.dumps(figures, indent=1))


def write(page: Path, part: str, text: str) -> None:
    """Put the figures where the page has room for them, in place of older ones."""
    begin, end = f"<!-- measured: {part} -->\n", "<!-- end: measured -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no lines {begin.strip()} and {end} to write between")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
