"""Limits and deadlines over real sockets: what is refused, what is cancelled, what is never computed."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.conftest import in_a_thread
from vaeserve.bundle.engine import Engine

LATENTS = {"latents": [[0, 0, 0, 0]]}
HEAD = b"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Held:
    """A service whose decoder waits for `go` and records how many rows it was given."""

    def __init__(self, url, service):
        self.url, self.admission, self.service = url, service.admission, service
        self.go, self.began, self.rows = threading.Event(), threading.Event(), []

    def until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
            time.sleep(0.005)

    def idle(self):
        self.until(lambda: (self.admission.rows, self.admission.bytes) == (0, 0))


@pytest.fixture
def held(repository, monkeypatch):
    """`with held(queue_rows=…) as service`: its decoder waits for `service.go`."""
    decode = Engine.decode

    @contextlib.contextmanager
    def start(**settings):
        settings = Settings(models=repository / "tiny/1", access_log=False, **settings)
        app = create_app(settings)
        with in_a_thread(settings, app) as url:
            held = Held(url, app.state.service)

            def slowly(engine, latents):
                held.rows.append(len(latents))
                held.began.set()
                assert held.go.wait(60)
                return decode(engine, latents)

            monkeypatch.setattr(Engine, "decode", slowly)
            try:
                yield held
            finally:
                held.go.set()
            held.idle()

    return start


def in_background(url, path, number=1, **body):
    pool = ThreadPoolExecutor(number)
    return [pool.submit(httpx.post, url + path, timeout=60, **body) for _ in range(number)]


def said(answer, status, slug):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{slug}"
    return answer.json()["detail"]


def test_requests_are_refused_with_retry_after_while_too_many_rows_are_pending(held):
    with held(queue_rows=8) as service:
        # More rows than the limit, and still served: nothing else was pending.
        first = in_background(service.url, "/sample", json={"n": 20})
        service.until(lambda: service.admission.rows == 20)
        for answer in (
            httpx.get(f"{service.url}/sample"),
            httpx.post(f"{service.url}/decode", json=LATENTS),
            httpx.post(f"{service.url}/encode", json={"images": [[[0] * 8] * 8]}),
        ):
            assert "20 images or latents are waiting" in said(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/healthz", "/readyz", "/models", "/models/tiny"):
            assert httpx.get(service.url + path).status_code == 200
        assert service.admission.refused == {"rows": 3}
        service.go.set()
        assert first[0].result().status_code == 200
        service.idle()
        assert httpx.get(f"{service.url}/sample").status_code == 200


def test_a_request_is_refused_once_its_rows_are_known_to_be_too_many(held):
    with held(queue_rows=4) as service:
        where, body = urlsplit(service.url), json.dumps(LATENTS).encode()
        late = socket.create_connection((where.hostname, where.port), timeout=30)
        head = HEAD % len(body)
        late.sendall(head + body[:5])
        service.until(lambda: service.admission.bytes == 5)
        others = in_background(service.url, "/decode", 4, json=LATENTS)
        service.until(lambda: service.admission.rows == 4)
        late.sendall(body[5:])
        assert late.recv(100).startswith(b"HTTP/1.1 429 ")
        late.close()
        service.go.set()
        assert [other.result().status_code for other in others] == [200] * 4
        assert sum(service.rows) == 4


@pytest.mark.parametrize("limit", ["queue_rows", "queue_bytes"])
def test_the_body_of_a_refused_request_is_not_requested(held, limit):
    with held(**{limit: 1024}) as service:
        latents = np.zeros((200, 4), np.float32)
        first = in_background(service.url, "/decode", json={"latents": latents.tolist()})
        service.until(lambda: service.admission.rows == 200)
        if limit == "queue_rows":
            first += in_background(service.url, "/sample", 5, json={"n": 250})
            service.until(lambda: service.admission.rows >= 1024)
        where = urlsplit(service.url)
        with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
            connection.sendall(
                b"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 429 ")  # without a 100 before it
        service.go.set()
        assert {each.result().status_code for each in first} <= {200, 429}
        assert first[0].result().status_code == 200


def test_a_request_that_has_begun_is_finished_though_the_queue_is_full_by_then(held, monkeypatch):
    encode, encoding, go = Engine.encode, threading.Event(), threading.Event()
    go.set()  # set while the golden vectors are replayed

    def slowly(engine, images):
        encoding.set()
        assert go.wait(60)
        return encode(engine, images)

    monkeypatch.setattr(Engine, "encode", slowly)
    with held(queue_rows=4) as service:
        encoding.clear()
        go.clear()
        image = {"images": [[[7] * 8] * 8]}
        reconstruct = in_background(service.url, "/reconstruct", json=image)
        assert encoding.wait(30)
        others = in_background(service.url, "/decode", 3, json=LATENTS)
        service.until(lambda: service.admission.rows == 4)
        said(httpx.get(f"{service.url}/sample"), 429, "overloaded")
        go.set()
        service.go.set()
        assert reconstruct[0].result().status_code == 200
        assert [other.result().status_code for other in others] == [200] * 3


def test_a_request_ends_at_its_deadline_and_rows_still_in_the_queue_are_dropped(held):
    with held(timeout=0.5) as service:
        running = in_background(service.url, "/sample", json={"n": 2})
        assert service.began.wait(30)
        waiting = in_background(service.url, "/sample", 3, json={"n": 5})
        for each in (*running, *waiting):
            detail = said(each.result(), 504, "timeout")
            assert "within the 0.5 s" in detail
        service.idle()
        service.go.set()
        assert httpx.get(f"{service.url}/sample").status_code == 200
        assert service.rows == [2, 1]
        assert service.admission.refused == {"timeout": 4}


def test_the_queued_rows_of_a_disconnected_client_are_dropped(held):
    with held() as service:
        running = in_background(service.url, "/sample", json={"n": 2})
        assert service.began.wait(30)
        for path in ("/sample?n=100", "/sample?n=50"):
            with contextlib.suppress(httpx.TimeoutException):
                httpx.get(service.url + path, timeout=0.3)
        service.until(lambda: service.admission.rows == 2)
        service.go.set()
        assert running[0].result().status_code == 200
        assert httpx.get(f"{service.url}/sample?n=3").status_code == 200
        assert service.rows == [2, 3]


def test_a_body_that_stalls_is_refused_and_a_steady_one_is_not(held):
    body = json.dumps(LATENTS).encode() + b" " * 40_000
    with held(read_timeout=1) as service:
        service.go.set()
        where = urlsplit(service.url)
        head = HEAD % len(body)
        with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
            connection.sendall(head + body[:100])
            answer = b""
            while piece := connection.recv(10_000):  # until the service closes the connection
                answer += piece
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in answer.lower()
            assert b"The body did not arrive in time" in answer
        with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
            connection.sendall(head + body[:30_000])
            time.sleep(1.3)  # past read_timeout, but fast enough for this many bytes
            connection.sendall(body[30_000:])
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")


def test_requests_that_fail_or_are_refused_leave_nothing_pending(held):
    with held(queue_rows=2) as service:
        service.go.set()
        for body in (b"{", b'{"latents": [[1]]}', b'{"latents": [[1, 2, 3, 4]], "x": 1}'):
            answer = httpx.post(
                f"{service.url}/decode", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 422
        assert httpx.get(f"{service.url}/sample?n=100000").status_code == 413
        service.idle()
        assert service.rows == []
