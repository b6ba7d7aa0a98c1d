"""The servers that are compared, and one request that each of them answers with latents of `reference@1`."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.load import Request
from tests.live import free_port

HERE = Path(__file__).parent
NPY = "application/x-npy"
OURS = "vaeserve"
# Third-party servers → what pip installs for them.
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


def picture() -> np.ndarray:
    """A ring on black that looks like a digit, uint8 [28, 28], as compressible as MNIST's images."""
    y, x = np.mgrid[:28, :28]
    ring = np.abs(np.hypot((y - 14) * 0.8, x - 14) - 8)
    return np.clip(255 * (2 - ring), 0, 255).astype(np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def form(data: bytes, name: str) -> tuple[bytes, str]:
    """One PNG file as multipart/form-data: the body and its media type."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--x--\r\n"
    return body, "multipart/form-data; boundary=x"


def tensors(url: str, model: str) -> Request:
    """The raw pixels of the picture for `model`, in the Open Inference Protocol."""
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


@dataclass(eq=False)
class Server:
    """A server in its own processes, stopped (SIGSTOP) unless it is being measured."""

    name: str
    command: list[str]
    request: Callable[[str], Request]  # from the server's URL: encode one PNG
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
        self.port = free_port()
        command = [part.replace("{port}", str(self.port)) for part in self.command]
        # Triton's backend needs the libpython of the interpreter whose environment it runs in.
        libraries = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
        environment = os.environ | {"PYTHONPATH": str(self.folder)} | libraries
        with log.open("wb") as file:
            # `python -m` searches the working directory first, so that must be the checkout too.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, cwd=self.folder
            )
        until = time.monotonic() + 90
        while (status := self.ask()[0]) != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} does not answer ({status}):\n{log.read_text()[-2000:]}")
            time.sleep(0.2)

    def ask(self) -> tuple[int, bytes]:
        """Status and body of one answer; status 0 if there is none."""
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

    def check(self, expected: np.ndarray) -> None:
        """ValueError if the server answers other latents: a fast wrong answer does not count."""
        if self.name == "bare ASGI":
            return
        answer = json.loads(self.ask()[1])
        if "outputs" in answer:
            answer = {"mean": answer["outputs"][0]["data"]}
        mean = np.array(answer["mean"] if isinstance(answer, dict) else answer).reshape(-1)
        if mean.shape != expected.shape or np.abs(mean - expected).max() > 1e-3:
            raise ValueError(f"{self.name} answers {mean}")

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


def ours(models: Path, folder: Path = HERE.parent) -> Server:
    """The vaeserve of a checkout; this one by default."""
    name = OURS if folder == HERE.parent else f"{OURS} in {folder.resolve().name}"
    command = [sys.executable, "-m", "service", "--models", str(models.absolute()), "--port", "{port}"]
    return Server(name, command, lambda url: Request(f"{url}/encode", png(), "image/png"), folder.resolve())


def peer(name: str, models: Path, peers: Path) -> Server | None:
    """A server of `FILES`, installed into a folder of `peers` if it is missing; None if that fails."""
    python = sys.executable
    if name in PACKAGES:
        folder = peers / "".join(filter(str.isalpha, name)).lower()
        python = str(folder.absolute() / "bin/python")
        if not (folder / "ready").exists():
            print(f"{name}: installing into {folder}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES[name]]
            if subprocess.run(pip).returncode:
                print(f"skipped: {name} could not be installed", file=sys.stderr)
                return None
            (folder / "ready").touch()
    command = [python, str(HERE / "peers" / FILES[name]), str(models.absolute()), "{port}"]
    if name == "Triton, python backend":
        return Server(name, command, lambda url: tensors(url, "encode"))
    fields = {"LitServe": "image", "BentoML": "images"}  # these take files in forms only
    body, kind = form(png(), fields[name]) if name in fields else (png(), "image/png")
    return Server(name, command, lambda url: Request(f"{url}/encode", body, kind))
