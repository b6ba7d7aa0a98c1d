"""The service in an environment of its own: no torch, no client, no test libraries; only what is shipped.

Run by `make test-service` with the interpreter of that environment. Starts `vae-serve` from another
folder, calls the four endpoints over a real socket, stops it with SIGTERM; exits 1 at the first fault.
"""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MODELS = Path(__file__).parents[1] / "models"
ABSENT = ("torch", "onnx", "sklearn", "scipy", "matplotlib", "httpx", "typer", "pytest")


def main() -> None:
    for name in ABSENT:
        assert importlib.util.find_spec(name) is None, f"{name} is in the service's environment"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("vae-serve"), "--models", MODELS, "--port", str(port)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as elsewhere, subprocess.Popen(command, cwd=elsewhere) as process:
        try:
            base = f"http://127.0.0.1:{port}"
            until_ready(f"{base}/readyz")
            print(f"ready after {time.monotonic() - began:.1f} s")
            digit = call(f"{base}/sample?n=1&seed=7", accept="image/png")
            assert digit.startswith(b"\x89PNG")
            encoded = json.loads(call(f"{base}/encode", digit, "image/png"))
            assert len(encoded["mean"]) == 1
            latents = json.dumps({"latents": encoded["mean"]}).encode()
            decoded = call(f"{base}/decode", latents, "application/json", "image/png")
            assert decoded.startswith(b"\x89PNG")
            assert call(f"{base}/reconstruct", digit, "image/png", "image/png") == decoded
            docs = call(f"{base}/docs", accept="text/html").decode()
            assert "https://" not in docs.replace("https://fastapi.tiangolo.com", ""), "/docs needs a network"
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(30)
    assert status == 0, f"vae-serve ended with {status} after SIGTERM"
    print("1 passed, 0 failed")


def until_ready(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} was not ready within 30 s")


def call(url: str, body: bytes | None = None, kind: str = "", accept: str = "application/json") -> bytes:
    headers = {"Accept": accept} | ({"Content-Type": kind} if kind else {})
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    main()
