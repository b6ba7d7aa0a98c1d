"""Bytes that are no HTTP get an answer of the same shape as everything else."""

import json
import socket
from urllib.parse import urlsplit

import pytest


def exchange(url, data):
    """Everything that comes back for these bytes."""
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
def test_what_is_no_http_is_refused_as_a_problem(service_url, data):
    head, _, body = exchange(service_url, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    said = json.loads(body)
    assert (said["type"], said["status"]) == ("/problems/invalid-request", 400)
    assert f"x-request-id: {said['instance']}".encode() in head.lower()
