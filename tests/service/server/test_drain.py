"""Stopping finishes requests in flight and gives load balancers time to notice."""

import json
import signal
import socket
import time

import httpx
import pytest

from tests.live import SECONDS, running, until

JSON = {"Content-Type": "application/json"}


def begin(url, body, part):
    """A connection with an unfinished request, of which the head and `part` of the body are sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=SECONDS)
    head = f"POST /decode?model=tiny HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:part])
    return connection


def answer(connection):
    """Status, headers and body of the answer, read until the connection closes."""
    received = b""
    while chunk := connection.recv(1 << 16):
        received += chunk
    connection.close()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *headers = head.decode().lower().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_draining_service_finishes_requests_and_still_accepts_more(workers, repository, tmp_path):
    body = json.dumps({"latents": [[0.0] * 4]}).encode()
    flags = ["--workers", workers, "--drain-seconds", "3"]
    with running(repository, *flags, log=tmp_path / "log") as (process, url):
        time.sleep(1)  # for the second worker
        begun = [begin(url, body, 10) for _ in range(8)]
        time.sleep(0.5)  # until the workers have them
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late = httpx.get(f"{url}/readyz")
        assert late.status_code == 503
        assert late.json()["type"] == "/problems/draining"
        assert late.headers["connection"] == "close"
        assert late.headers["retry-after"] == "1"
        more = [httpx.post(f"{url}/decode?model=tiny", content=body, headers=JSON) for _ in range(8)]
        assert {each.status_code for each in more} == {200}
        assert {each.headers["connection"] for each in more} == {"close"}
        half, rest = begun[:4], begun[4:]
        for connection in half:
            connection.sendall(body[10:])
        answers = [answer(connection) for connection in half]
        while True:  # until the service stops accepting
            try:
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
            except OSError:
                break
            assert process.poll() is None
            time.sleep(0.1)
        for connection in rest:
            connection.sendall(body[10:])
        answers += [answer(connection) for connection in rest]
        assert process.wait(SECONDS) == 0
    assert [status for status, _, _ in answers] == [200] * 8
    assert {headers["connection"] for _, headers, _ in answers} == {"close"}
    assert all(len(json.loads(body)["images"]) == 1 for _, _, body in answers)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_does_not_wait_for_balancers(workers, repository):
    with running(repository, "--workers", workers, "--drain-seconds", "600") as (process, _):
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0


def test_a_second_sigterm_ends_draining(repository):
    with running(repository, "--drain-seconds", "600") as (process, url):
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
