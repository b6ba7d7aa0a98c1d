"""Two replicas behind HAProxy, which follows /readyz, are replaced and killed under load."""

import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from tests.live import SECONDS, VAE_SERVE, free_port, until, until_ready
from vaeserve import Client

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not shutil.which("haproxy"), reason="needs `apt-get install haproxy`"),
]
CALLERS = 4
LATENTS = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check 20s  # a slow answer on a busy machine does not mean a dead replica
    option httpchk GET /readyz
    option redispatch 1
    default-server check inter 200ms fall 2 rise 1
listen vaeserve
    bind 127.0.0.1:{port}
    server a 127.0.0.1:{a}
    server b 127.0.0.1:{b}
listen status
    bind 127.0.0.1:{status}
    stats enable
    stats uri /
"""


class Replicas:
    """Two services behind a load balancer."""

    def __init__(self, models, folder):
        self.models = models
        self.ports = {"a": free_port(), "b": free_port()}
        self.port, self.status = free_port(), free_port()
        self.processes = {}
        for name in self.ports:
            self.start(name)
        config = folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=self.port, status=self.status, **self.ports))
        self.haproxy = subprocess.Popen(["haproxy", "-db", "-q", "-f", config])
        for name in self.ports:
            self.until(name, "UP")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, name):
        command = [VAE_SERVE, "--models", self.models, "--port", str(self.ports[name]), "--no-access-log"]
        self.processes[name] = subprocess.Popen([*command, "--default-model", "tiny", "--drain-seconds", "3"])
        until_ready(f"http://127.0.0.1:{self.ports[name]}/readyz", self.processes[name])

    def until(self, name, state):
        """Wait until the load balancer shows this state of the replica."""

        def reached():
            try:
                table = httpx.get(f"http://127.0.0.1:{self.status}/;csv").text
            except httpx.TransportError:
                return False  # the load balancer is starting
            rows = [line.split(",") for line in table.splitlines()]
            return [row[17] for row in rows if row[:2] == ["vaeserve", name]] == [state]

        until(reached)

    def stop(self):
        for process in (self.haproxy, *self.processes.values()):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def replicas(repository, tmp_path_factory):
    found = Replicas(repository, tmp_path_factory.mktemp("haproxy"))
    yield found
    found.stop()


@contextmanager
def load(call):
    """Several callers repeat `call`; the list receives each result or exception."""
    outcomes, over = [], threading.Event()

    def caller():
        while not over.is_set():
            try:
                outcomes.append(call())
            except Exception as error:
                outcomes.append(error)

    threads = [threading.Thread(target=caller) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_rolling_restart_fails_no_request(replicas):
    """The callers never retry."""
    with httpx.Client(base_url=replicas.url, timeout=SECONDS) as http:
        body = {"latents": LATENTS.tolist()}
        with load(lambda: http.post("/decode", json=body).status_code) as outcomes:
            for name in replicas.ports:
                time.sleep(1)
                old, before = replicas.processes[name], len(outcomes)
                old.send_signal(signal.SIGTERM)
                assert old.wait(SECONDS) == 0
                replicas.until(name, "DOWN")
                replicas.start(name)
                replicas.until(name, "UP")
                assert len(outcomes) > before + 10
    failed = [outcome for outcome in outcomes if outcome != 200]
    print(f"rolling restart: {len(failed)} of {len(outcomes)} requests failed")
    assert not failed


def test_a_kill_fails_only_requests_in_flight_and_the_client_retries_them(replicas):
    with httpx.Client(base_url=replicas.url, timeout=SECONDS) as http, Client(replicas.url) as client:
        expected = client.decode(LATENTS)

        def plain():
            return http.post("/decode", json={"latents": LATENTS.tolist()}).status_code == 200

        def retrying():
            return np.array_equal(client.decode(LATENTS), expected)

        for name, call, may_fail in (("a", plain, CALLERS), ("b", retrying, 0)):
            with load(call) as outcomes:
                time.sleep(1)
                replicas.processes[name].kill()
                replicas.processes[name].wait()
                replicas.until(name, "DOWN")
                replicas.start(name)
                replicas.until(name, "UP")
            failed = [outcome for outcome in outcomes if outcome is not True]
            print(f"kill -9 under {call.__name__} callers: {len(failed)} of {len(outcomes)} failed")
            assert len(outcomes) > 20
            assert len(failed) <= may_fail, failed
