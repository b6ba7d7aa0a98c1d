"""What a new user does first: clone into an empty folder, `make serve`, call it."""

import os
import shutil
import signal
import subprocess
import time
import urllib.request

import pytest

from tests.checkout import ROOT


@pytest.mark.heavy
def test_make_serve_in_a_fresh_clone(tmp_path, free_port):
    clone = tmp_path / "vaeserve"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    # No variable set: only what finds programs and packages is kept, and the port, which must be free here.
    kept = ("PATH", "HOME", "LANG")
    environment = {key: value for key, value in os.environ.items() if key in kept or key.startswith("PIP_")}
    environment["VAESERVE_PORT"] = str(free_port)
    began = time.monotonic()
    with subprocess.Popen(["make", "serve"], cwd=clone, env=environment, start_new_session=True) as process:
        try:
            grid = _until_answered(f"http://127.0.0.1:{free_port}/sample?n=64&seed=7", seconds=180)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    print(f"make serve answered after {time.monotonic() - began:.0f} s")
    assert grid.startswith(b"\x89PNG")
    assert not any((clone / ".venv/serve").rglob("torch/__init__.py"))
    shutil.rmtree(clone)


def _until_answered(url: str, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    while True:
        try:
            request = urllib.request.Request(url, headers={"Accept": "image/png"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
