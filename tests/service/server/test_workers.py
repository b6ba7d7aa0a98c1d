"""`vae-serve --workers` with real processes that are killed, lose their models, and are stopped."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from tests.bundles import make_bundle
from tests.checkout import ROOT
from tests.live import SECONDS, VAE_SERVE, free_port, running, until
from tests.service.server.processes import alive, children, workers

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")


@pytest.fixture
def models(tmp_path):
    make_bundle(tmp_path / "models")
    return tmp_path / "models"


def metric(url, name):
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_all_workers_serve_and_each_reports_the_metrics_of_all(models, tmp_path):
    with running(models, "--workers", "2", log=tmp_path / "log") as (process, url):
        until(lambda: "vaeserve 0.1.0 at" in (tmp_path / "log").read_text())
        assert len(workers(process)) == 2
        before = metric(url, "vae_rows_total")
        for _ in range(40):  # each over its own connection, so that both workers get some
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


def test_a_dead_worker_is_replaced_and_no_counts_are_lost(models, tmp_path):
    with running(models, "--workers", "2", log=tmp_path / "log", TMPDIR=str(tmp_path)) as (process, url):
        until(lambda: len(workers(process)) == 2)
        for _ in range(20):
            httpx.get(f"{url}/sample")
        until(
            lambda: {metric(url, "vae_rows_total") for _ in range(8)} == {20}
        )  # all workers have written them
        for _ in range(2):  # the second worker dies young, so its successor waits
            victim = min(workers(process))
            os.kill(victim, signal.SIGKILL)
            until(lambda victim=victim: len(workers(process) - {victim}) == 2)
            for _ in range(5):  # the other worker serves, and the new one once it is ready
                assert httpx.get(f"{url}/readyz", timeout=SECONDS).status_code == 200
        assert metric(url, "vae_rows_total") == 20
        assert metric(url, "vae_worker_restarts_total") == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    said = (tmp_path / "log").read_text()
    assert re.search(r"worker \d was killed by SIGKILL; another starts in 0.0 s", said)
    assert "Traceback" not in said
    assert not left_over(tmp_path)


def test_a_worker_that_cannot_load_is_retried_while_the_others_serve(models, tmp_path):
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


def test_a_worker_whose_model_hangs_is_replaced(tmp_path):
    """Simulated by a limit that every batch exceeds."""
    models, log = ROOT / "models/mnist", tmp_path / "log"
    newest = max(models.iterdir(), key=lambda path: int(path.name))
    with running(newest, "--workers", "2", "--stuck-after", "0.0001", log=log) as (process, url):
        over = threading.Event()

        def ask():
            while not over.is_set():
                with contextlib.suppress(httpx.TransportError):  # these connections end with the worker
                    httpx.get(f"{url}/sample?n=256", timeout=SECONDS)

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: "exits so that it is replaced" in log.read_text())
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
        until(lambda: not any(alive(pid) for pid in family))
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert not left_over(tmp_path)


def left_over(folder):
    return list(folder.glob("vaeserve-*"))


def test_a_signal_during_loading_stops_the_service(models, tmp_path):
    command = [VAE_SERVE, "--models", models, "--port", str(free_port()), "--workers", "2"]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            until(lambda process=process: children(process.pid))
            process.send_signal(number)
            said = process.communicate(timeout=SECONDS)[1]
            assert process.returncode == 0, said
            assert "Traceback" not in said


@pytest.mark.parametrize(("workers", "written"), [("1", set()), ("2", {"vaeserve", "pymp"})])
def test_temporary_files_are_those_that_the_container_page_names(workers, written, models, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    with running(models, "--workers", workers, TMPDIR=str(folder)) as (process, _):
        assert {path.name.partition("-")[0] for path in folder.iterdir()} == written
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    assert not list(folder.iterdir())
