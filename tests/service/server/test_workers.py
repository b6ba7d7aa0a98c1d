"""`vae-serve --workers`: real processes that are killed, starved of models, and stopped."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.bundles import make_bundle
from tests.checkout import ROOT
from tests.live import VAE_SERVE, free_port, running

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")
SECONDS = 60  # for what takes a moment, on the slowest machine


@pytest.fixture
def models(tmp_path):
    make_bundle(tmp_path / "models")
    return tmp_path / "models"


def children(pid):
    """The processes that `pid` has started, and theirs: {pid: depth}."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found, level, depth = {}, {pid}, 0
    while level:
        depth += 1
        level = {child for child, parent in parents.items() if parent in level}
        found |= dict.fromkeys(level, depth)
    return found


def workers(process):
    """Workers are what the process that forks has forked."""
    return {pid for pid, depth in children(process.pid).items() if depth == 2}


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def metric(url, name):
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_all_serve_and_any_can_say_what_all_did(models, tmp_path):
    with running(models, "--workers", "2", log=tmp_path / "log") as (process, url):
        until(lambda: "vaeserve 0.1.0 at" in (tmp_path / "log").read_text())
        assert len(workers(process)) == 2
        before = metric(url, "vae_rows_total")
        for _ in range(40):  # each over a connection of its own, so that both get some
            assert httpx.get(f"{url}/sample?n=3").status_code == 200
        until(lambda: {metric(url, "vae_rows_total") - before for _ in range(8)} == {120})
        assert metric(url, "vae_model_info") == 1
        memory = metric(url, "process_resident_memory_bytes")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("vaeserve 0.1.0 at") == 1
    assert "Traceback" not in said
    assert memory > 2 * 40e6
    assert not left_over(tmp_path)


def test_a_dead_worker_is_replaced_and_nobody_s_counts_are_lost(models, tmp_path):
    with running(models, "--workers", "2", log=tmp_path / "log", TMPDIR=str(tmp_path)) as (process, url):
        until(lambda: len(workers(process)) == 2)
        for _ in range(20):
            httpx.get(f"{url}/sample")
        until(lambda: {metric(url, "vae_rows_total") for _ in range(8)} == {20})  # all have told
        for _ in range(2):  # the second time it has not lived long, and is waited for
            victim = min(workers(process))
            os.kill(victim, signal.SIGKILL)
            until(lambda victim=victim: len(workers(process) - {victim}) == 2)
            for _ in range(5):  # the other one serves, and the new one only when it can
                assert httpx.get(f"{url}/readyz", timeout=SECONDS).status_code == 200
        assert metric(url, "vae_rows_total") == 20
        assert metric(url, "vae_worker_restarts_total") == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    said = (tmp_path / "log").read_text()
    assert re.search(r"worker \d was killed by SIGKILL; another starts in 0.0 s", said)
    assert "Traceback" not in said
    assert not left_over(tmp_path)


def test_a_worker_that_cannot_load_leaves_the_others_alone_and_is_tried_again(models, tmp_path):
    with running(models, "--workers", "2", log=tmp_path / "log") as (process, url):
        until(lambda: "vaeserve 0.1.0 at" in (tmp_path / "log").read_text())
        shutil.move(models, tmp_path / "away")
        os.kill(min(workers(process)), signal.SIGKILL)
        until(lambda: "cannot serve: " in (tmp_path / "log").read_text())
        for _ in range(5):
            assert httpx.get(f"{url}/readyz", timeout=SECONDS).status_code == 200
        shutil.move(tmp_path / "away", models)
        until(lambda: metric(url, "process_resident_memory_bytes") > 0 and len(workers(process)) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_worker_whose_model_does_not_come_back_is_replaced(tmp_path):
    """As far as the service can tell: every batch takes longer than it is told to believe in."""
    models, log = ROOT / "models/mnist", tmp_path / "log"
    newest = max(models.iterdir(), key=lambda path: int(path.name))
    with running(newest, "--workers", "2", "--stuck-after", "0.0001", log=log) as (process, url):
        over = threading.Event()

        def ask():
            while not over.is_set():
                with contextlib.suppress(httpx.TransportError):  # theirs go with the worker
                    httpx.get(f"{url}/sample?n=256", timeout=SECONDS)

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: "gives up its place" in log.read_text())
            until(lambda: "ended with status 4; another starts" in log.read_text())
        finally:
            over.set()
            for caller in callers:
                caller.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_workers_do_not_outlive_their_supervisor(models, tmp_path):
    with running(models, "--workers", "2", TMPDIR=str(tmp_path)) as (process, url):
        until(lambda: len(workers(process)) == 2)
        family = set(children(process.pid))
        assert left_over(tmp_path)
        process.kill()
        process.wait()
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in family))
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert not left_over(tmp_path)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_over(folder):
    return list(folder.glob("vaeserve-*"))


def test_a_signal_while_they_load_is_heard(models, tmp_path):
    command = [VAE_SERVE, "--models", models, "--port", str(free_port()), "--workers", "2"]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            until(lambda process=process: children(process.pid))
            process.send_signal(number)
            said = process.communicate(timeout=SECONDS)[1]
            assert process.returncode == 0, said
            assert "Traceback" not in said
