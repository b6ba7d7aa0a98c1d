"""Keeps a number of connections busy with one request, with wrk if it is installed.

Otherwise `measure` starts its own client as a process, `python -m benchmarks.load`: one thread with raw
sockets that reads answers by their Content-Length and does not parse them. It uses twice as much CPU as wrk.
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
    """The server refused or closed a connection."""


@dataclass(frozen=True)
class Request:
    url: str
    body: bytes = b""  # empty for a GET
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
        """The bytes of the request in HTTP/1.1."""
        url = urlsplit(self.url)
        target = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        headers = {"Host": url.netloc, "Content-Length": str(len(self.body))} | self.headers
        head = [f"{self.method} {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*head, "", ""]).encode() + self.body


@dataclass(frozen=True)
class Load:
    """The result of `measure`: latencies `p50` and `p99` in seconds, and the client's own CPU seconds."""

    answers: int
    seconds: float
    bad: int  # answers other than 2xx, and broken connections
    p50: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        return (self.answers - self.bad) / self.seconds


def measure(request: Request, *, connections: int, seconds: float) -> Load:
    """Keep one request in flight on each connection for `seconds`."""
    with tempfile.TemporaryDirectory() as work:
        body, script = Path(work, "body"), Path(work, "load.lua")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if shutil.which("wrk"):
            body.write_bytes(request.body)
            script.write_text(LUA)
            duration = f"-d{max(1, round(seconds))}s"  # wrk takes whole seconds
            command = ["wrk", "-t1", f"-c{connections}", duration, "-s", str(script), request.url]
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
        exchange.send()
    while time.perf_counter() < until:
        for key, _ in selector.select(1):
            status = key.data.receive()
            if status is not None:
                took.append(time.perf_counter() - key.data.sent)
                bad += not 200 <= status < 300
                if not status:
                    raise SystemExit("the server closed a connection")
                key.data.send()
    p50, p99 = np.percentile(took or [0], [50, 99])
    result = {"answers": len(took), "seconds": time.perf_counter() - began, "bad": bad}
    print(json.dumps(result | {"p50": p50, "p99": p99}), file=sys.stderr)


class _Exchange:
    """One connection with one request in flight."""

    def __init__(self, connection: socket.socket, request: bytes) -> None:
        self.connection = connection
        self.request = request
        self.sent = 0.0
        self._answer = bytearray()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.connection.sendall(self.request)

    def receive(self) -> int | None:
        """The status of a complete answer; 0 if the server closed; None while the answer is incomplete."""
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
