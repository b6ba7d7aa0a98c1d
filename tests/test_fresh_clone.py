"""A fresh clone serves after `make serve`, and an installed wheel serves from another folder."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.live import running


@pytest.mark.heavy
def test_make_serve_in_a_fresh_clone(tmp_path, free_port):
    clone = tmp_path / "vaeserve"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    # Keep only the variables that programs and pip need, and set a free port.
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


def test_an_installed_wheel_serves_from_another_folder(tmp_path):
    """All three packages and the files of the explorer are in the wheel."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", site, ROOT], check=True)
    assert {"vaeserve", "service", "training"} <= {path.name for path in site.iterdir()}
    imports = "import service.app, training.config, vaeserve.bundle, vaeserve.client"
    code = f"{imports}; print(*(m.__file__ for m in (service, training, vaeserve)))"
    environment = os.environ | {"PYTHONPATH": str(site)}
    python = {"cwd": elsewhere, "env": environment, "check": True, "capture_output": True, "text": True}
    files = subprocess.run([sys.executable, "-c", code], **python).stdout.split()
    assert all(Path(file).is_relative_to(site) for file in files), files
    with running(ROOT / "models", cwd=elsewhere, PYTHONPATH=str(site)) as (_, url):
        assert _get(f"{url}/sample?n=64&seed=7").startswith(b"\x89PNG")
        page = _get(f"{url}/", "text/html").decode()
        assets = re.findall(r"""(?:src|href)="([^":]+\.(?:js|css))\"""", page)
        assert assets
        for asset in assets:
            assert _get(urllib.parse.urljoin(f"{url}/", asset), "*/*")


def _get(url: str, accept: str = "image/png") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def _until_answered(url: str, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _get(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
