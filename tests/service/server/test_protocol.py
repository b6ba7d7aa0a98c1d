"""Broken and unfinished requests get problem documents, and clients can read them."""

import json
import re
import select
import socket
import time
from urllib.parse import urlsplit

import pytest

from service.server import protocol
from tests.bundles import make_bundle
from tests.live import running


def exchange(url, data):
    """The answer to these bytes, up to the end of the connection."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /sample\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the first bytes of https
    ],
)
def test_bytes_that_are_not_http_get_a_problem_document(service_url, data):
    head, _, body = exchange(service_url, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    said = json.loads(body)
    assert (said["type"], said["status"]) == ("/problems/invalid-request", 400)
    assert f"x-request-id: {said['instance']}".encode() in head.lower()


# --- requests refused while the client still sends ----------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A service that waits 0.2 s for a body."""
    models = tmp_path_factory.mktemp("models")
    make_bundle(models, "tiny")
    log = models.with_name("log")
    with running(models, "--read-timeout", "0.2", "--workers", "1", log=log) as (process, url):
        yield url
        process.terminate()
        assert process.wait(30) == 0
    assert not re.search(r" (ERROR|CRITICAL) |Traceback", log.read_text()), log.read_text()


@pytest.fixture
def connection(impatient):
    where = urlsplit(impatient)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        yield connection


HEAD = b"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = HEAD + b"Content-Length: 1000000\r\n\r\n["


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (SLOW, 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n[", 408),
        (HEAD + b"Connection: close\r\nContent-Length: 100000000\r\n\r\n[", 413),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\nxyz\r\n", 400),
        (b"GET /" + b"a" * 70_000, 431),
    ],
    ids=["slow", "slow chunks", "too large", "not http", "broken chunk", "long head"],
)
def test_a_client_that_still_sends_can_read_the_refusal(connection, data, status):
    """A reset would make the send fail and might lose the answer."""
    connection.sendall(data)
    assert select.select([connection], [], [], 30)[0]  # refused, and the service has closed its half
    for _ in range(100):
        connection.sendall(b"1," * 1000)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    connection.sendall(b"1," * 1000)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == json.loads(body)["status"] == status
    assert b"connection: close" in head.lower()


def test_the_body_of_a_refused_request_is_limited_in_size(connection):
    """The rest of the body is discarded, up to LINGER_BYTES."""
    connection.sendall(SLOW)
    assert select.select([connection], [], [], 30)[0]
    sent = 0
    try:
        while sent < 64 << 20:
            sent += connection.send(bytes(65536))
    except OSError:  # reset
        pass
    assert protocol.LINGER_BYTES <= sent < 64 << 20


def test_the_body_of_a_refused_request_is_limited_in_time(connection):
    connection.sendall(SLOW)
    assert select.select([connection], [], [], 30)[0]
    pieces = 0
    try:
        while pieces < 300:  # half a minute; the service waits for two seconds
            connection.sendall(b"1,")
            pieces += 1
            time.sleep(0.1)
    except OSError:  # reset
        pass
    assert 0 < pieces < 300
