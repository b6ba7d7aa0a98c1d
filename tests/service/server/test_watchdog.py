"""A process with a hanging event loop exits; a process that was only stopped does not."""

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.bundles import make_bundle
from tests.live import SECONDS, running, until
from tests.service.server.processes import children, workers

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")

# Every Python process imports sitecustomize. Latents for few images are sampled on the event loop.
HANGS = """
import os, time
from vaeserve.bundle.prior import Prior

sample = Prior.sample

def hanging(*arguments, **options):
    while os.path.exists(os.environ["HANG"]):
        time.sleep(0.1)
    return sample(*arguments, **options)

Prior.sample = hanging
"""


@pytest.fixture
def hangs(tmp_path):
    """A repository, the environment of a service that hangs while the file `hang` exists, and `hang`."""
    make_bundle(tmp_path / "models")
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text(HANGS)
    path = os.pathsep.join([str(tmp_path / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return tmp_path / "models", {"PYTHONPATH": path, "HANG": str(tmp_path / "hang")}, tmp_path / "hang"


def ask_in_vain(url):
    with contextlib.suppress(httpx.TransportError):
        httpx.get(f"{url}/sample", timeout=SECONDS)


def test_a_single_process_exits_and_logs_where_it_hung(hangs, tmp_path):
    models, environment, hang = hangs
    log = tmp_path / "log"
    with running(models, "--workers", "1", "--stuck-after", "1", log=log, **environment) as (process, url):
        assert httpx.get(f"{url}/sample", timeout=SECONDS).status_code == 200
        hang.touch()
        caller = threading.Thread(target=ask_in_vain, args=(url,))
        caller.start()
        assert process.wait(SECONDS) == 4
        caller.join()
    assert re.search(r"the event loop has hung for \d+ s", log.read_text())
    assert "in hanging" in log.read_text()


def test_a_hanging_worker_is_replaced(hangs, tmp_path):
    models, environment, hang = hangs
    log = tmp_path / "log"
    with running(models, "--workers", "2", "--stuck-after", "1", log=log, **environment) as (process, url):
        until(lambda: "vaeserve 0.1.0 at" in log.read_text())
        before = workers(process)
        hang.touch()
        caller = threading.Thread(target=ask_in_vain, args=(url,))
        caller.start()
        until(lambda: "ended with status 4; another starts" in log.read_text())
        hang.unlink()
        caller.join()
        until(lambda: len(workers(process)) == 2)
        assert workers(process) - before
        for _ in range(10):
            assert httpx.get(f"{url}/sample", timeout=SECONDS).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_process_that_was_stopped_continues(hangs):
    models, environment, _ = hangs
    with running(models, "--workers", "1", "--stuck-after", "3", **environment) as (process, url):
        assert not children(process.pid)
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        time.sleep(2)  # two checks of the watchdog
        assert httpx.get(f"{url}/sample", timeout=SECONDS).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
