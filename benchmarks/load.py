"""Keeps a number of connections busy with one request: by wrk where it is installed, else by its own client.

`python -m benchmarks.load` is that client in a process of its own, as `measure` starts it: one thread, raw
sockets, answers read by their Content-Length and not parsed. It takes twice as much CPU as wrk.
"""

import json
import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

LUA = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = os.getenv("METHOD")
wrk.body = wrk.method == "POST" and file:read("*a") or nil
for name, value in string.gmatch(os.getenv("HEADERS"), "([^:]+): ([^%c]+)%c") do
  wrk.headers[name] = value
end
function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('{"answers": %d, "seconds": %f, "bad": %d, "p50": %f, "p99": %f}',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
"""


class LoadError(RuntimeError):
    """The server could not be asked at all: it refuses connections, or has closed one."""


@dataclass(frozen=True)
class Request:
    url: str
    body: bytes = b""  # none: a GET
    kind: str = "image/png"  # the body's media type
    accept: str = "application/json"
    more: tuple[tuple[str, str], ...] = ()  # headers

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": self.accept} | ({"Content-Type": self.kind} if self.body else {}) | dict(self.more)

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"

    def raw(self) -> bytes:
        """As HTTP/1.1 on the wire."""
        url = urlsplit(self.url)
        target = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        headers = {"Host": url.netloc, "Content-Length": str(len(self.body))} | self.headers
        head = [f"{self.method} {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*head, "", ""]).encode() + self.body


@dataclass(frozen=True)
class Load:
    """What came back: `p50` and `p99` are seconds from request to answer, `cpu` the client's own seconds."""

    answers: int
    seconds: float
    bad: int  # answers other than 2xx, and connections that broke
    p50: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        return (self.answers - self.bad) / self.seconds


def measure(request: Request, *, connections: int, seconds: float) -> Load:
    """`connections` requests in flight for so many seconds; each next one as soon as the last is answered."""
    with tempfile.TemporaryDirectory() as work:
        body, script = Path(work, "body"), Path(work, "load.lua")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if shutil.which("wrk"):
            body.write_bytes(request.body)
            script.write_text(LUA)
            command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script), request.url]
            lines = "".join(f"{name}: {value}\n" for name, value in request.headers.items())
            environment = {"BODY": str(body), "METHOD": request.method, "HEADERS": lines}
        else:
            body.write_bytes(request.raw())
            address = f"{urlsplit(request.url).hostname}:{urlsplit(request.url).port}"
            command = [sys.executable, "-m", "benchmarks.load", address, str(body)]
            command += [str(connections), str(seconds)]
            environment = {}
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode:
            raise LoadError(f"{command[0]} failed: {done.stderr or done.stdout}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(**json.loads(done.stderr), cpu=cpu)


def main() -> None:
    address, path, connections, seconds = sys.argv[1:]
    host, _, port = address.rpartition(":")
    request = Path(path).read_bytes()
    selector = selectors.DefaultSelector()
    for _ in range(int(connections)):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, _Exchange(connection, request))
    began = time.perf_counter()
    until = began + float(seconds)
    took: list[float] = []
    bad = 0
    exchanges = [key.data for key in selector.get_map().values()]
    for exchange in exchanges:
        exchange.ask()
    while time.perf_counter() < until:
        for key, _ in selector.select(1):
            status = key.data.hear()
            if status is not None:
                took.append(time.perf_counter() - key.data.asked)
                bad += not 200 <= status < 300
                if not status:
                    raise SystemExit("the server closed a connection")
                key.data.ask()
    p50, p99 = np.percentile(took or [0], [50, 99])
    result = {"answers": len(took), "seconds": time.perf_counter() - began, "bad": bad}
    print(json.dumps(result | {"p50": p50, "p99": p99}), file=sys.stderr)


class _Exchange:
    """One connection: asks, and hears until the answer is whole."""

    def __init__(self, connection: socket.socket, request: bytes) -> None:
        self.connection = connection
        self.request = request
        self.asked = 0.0
        self._answer = bytearray()

    def ask(self) -> None:
        self.asked = time.perf_counter()
        self.connection.sendall(self.request)

    def hear(self) -> int | None:
        """The status of an answer that is whole, 0 when the server closed, None while more is to come."""
        data = self.connection.recv(1 << 20)
        if not data:
            return 0
        self._answer += data
        head = self._answer.find(b"\r\n\r\n")
        if head < 0:
            return None
        lower = self._answer[:head].lower()
        start = lower.index(b"content-length:") + 15
        length = int(lower[start:].split(b"\r\n", 1)[0])
        if len(self._answer) < head + 4 + length:
            return None
        status = int(self._answer[9:12])
        self._answer.clear()
        return status


if __name__ == "__main__":
    main()
