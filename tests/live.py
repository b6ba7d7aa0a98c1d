"""Runs real `vae-serve` processes for tests that use a real socket."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

VAE_SERVE = Path(sys.executable).with_name("vae-serve")
SECONDS = 60  # for what takes a moment, on the slowest machine


def environment() -> dict[str, str]:
    """The environment without settings of the service."""
    return {key: value for key, value in os.environ.items() if not key.startswith("VAESERVE_")}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a `vae-serve` command that ends by itself."""
    return subprocess.run(
        [VAE_SERVE, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=SECONDS
    )


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds:.0f} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    models: Path, *flags: str, log: Path | None = None, cwd: Path | None = None, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A ready service on `models`, as its process and its URL. Killed at the end if it still runs."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [VAE_SERVE, "--models", models, "--port", str(port), *flags]
    # No balancer has to notice that the service stops.
    settings = environment() | {"VAESERVE_DRAIN_SECONDS": "0"} | variables
    output = log.open("wb") if log else None
    with (
        output or nullcontext(),
        subprocess.Popen(command, cwd=cwd, env=settings, stdout=output, stderr=output) as process,
    ):
        try:
            until_ready(f"{url}/readyz", process)
            yield process, url
        finally:
            process.kill()


@contextmanager
def serving(models: Path, *flags: str) -> Iterator[str]:
    """The URL of a ready service on `models`. It must exit with status 0 after SIGTERM."""
    with running(models, *flags) as (process, url):
        yield url
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    assert status == 0, f"vae-serve ended with {status} after SIGTERM"


def until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, f"vae-serve ended with {process.returncode} instead of serving"
            assert time.monotonic() < deadline, f"{url} was not ready within {seconds:.0f} s"
            time.sleep(0.05)
