"""A real `vae-serve` process on a free port, for tests that go over a real socket."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

VAE_SERVE = Path(sys.executable).with_name("vae-serve")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    models: Path, *flags: str, log: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service on `models` that is ready, and its URL. Killed at the end, should it still run then."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [VAE_SERVE, "--models", models, "--port", str(port), *flags]
    ours = {key: value for key, value in os.environ.items() if not key.startswith("VAESERVE_")}
    # There is no balancer that would have to notice.
    ours |= {"VAESERVE_DRAIN_SECONDS": "0"} | environment
    output = log.open("wb") if log else None
    with (
        output or nullcontext(),
        subprocess.Popen(command, env=ours, stdout=output, stderr=output) as process,
    ):
        try:
            until_ready(f"{url}/readyz", process)
            yield process, url
        finally:
            process.kill()


@contextmanager
def serving(models: Path, *flags: str) -> Iterator[str]:
    """The URL of a service on `models` that is ready; stopped with SIGTERM, and it must end well."""
    with running(models, *flags) as (process, url):
        yield url
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    assert status == 0, f"vae-serve ended with {status} after SIGTERM"


def until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, f"vae-serve ended with {process.returncode} instead of serving"
            assert time.monotonic() < deadline, f"{url} was not ready within {seconds:.0f} s"
            time.sleep(0.05)
