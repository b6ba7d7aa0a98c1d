"""Input made to harm, over real sockets to a real process: refused within seconds, and it does not grow."""

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live import VAE_SERVE, free_port, until_ready

SECONDS, GROWTH = 5, 150e6  # of the contract
JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")


class Victim:
    """A `vae-serve` of its own, and what it logs."""

    def __init__(self, url, process, log):
        self.url, self.process, self.log = url, process, log
        where = urlsplit(url)
        self.address = (where.hostname, where.port)

    def resident(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def cpu(self):
        """Seconds that it has computed; a machine that others use adds nothing to them."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def exchange(self, *pieces, pause=0.0):
        """All that comes back for these bytes, until the service closes the connection or is done."""
        with socket.create_connection(self.address, timeout=120) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            except OSError:
                pass  # it does not want to hear more
            answer = b""
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except OSError:
                pass  # reset: it has closed with bytes of ours unread
            return answer


@pytest.fixture(scope="module")
def victim(repository, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    port = free_port()
    command = [
        VAE_SERVE,
        "--models",
        repository,
        "--default-model",
        "tiny",
        "--port",
        str(port),
        "--drain-seconds",
        "0",
        "--workers",
        "1",  # so that it is the process that is looked at
    ]
    with open(log, "wb") as file, subprocess.Popen([*map(str, command)], stderr=file) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until_ready(f"{url}/readyz", process)
            for path in ("/encode", "/decode", "/sample"):  # what is imported and allocated once
                httpx.post(url + path, content=b"{}", headers={"Content-Type": JSON}, timeout=60)
            yield Victim(url, process, log)
            assert httpx.get(f"{url}/sample", timeout=60).status_code == 200
            assert process.poll() is None
        finally:
            process.terminate()
    assert not re.search(r" (ERROR|CRITICAL) |Traceback", log.read_text()), log.read_text()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b""):
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(kind, size=(3000, 3000), **options):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


def npy(shape, descr="|u1", data=b"\0" * 64):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def as_json(data):
    return json.dumps({"images": [base64.b64encode(data).decode()] * 8}).encode()


BOMB = zlib.compress(bytes(64 << 20), 9)
IMAGES = {
    "100 000 squared": png(100_000, 100_000),
    "2^31 wide": png((1 << 31) - 1, 1),
    "a bomb of 4096 squared": png(4096, 4096, BOMB),
    "a bomb behind a small header": png(8, 8, BOMB),
    "no pixels": png(0, 0),
    "text that unpacks": b"\x89PNG\r\n\x1a\n" + chunk(b"zTXt", b"a\0\0" + BOMB),
    "cut jpeg": picture("JPEG")[:5000],
    "cut png": picture("PNG")[:100],
    "cut webp": picture("WEBP")[:60],
    "lying gif": b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(800),
    "lying bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
    "jpeg of 65 535 squared": re.sub(
        rb"(?s)(\xff\xc0..\x08)....", b"\\1\xff\xff\xff\xff", picture("JPEG", (16, 16))
    ),
    "not an image": b"MZ" + bytes(1000),
}  # fmt: skip
# Within the limits these are answered, and chunks that are not pixels are not unpacked.
READABLE = [
    each
    for name in ("a bomb of 4096 squared", "a bomb behind a small header")
    for each in (IMAGES[name], as_json(IMAGES[name]))
]
NUMBERS = {
    "nan": b'{"latents": [[NaN, 0, 0, 0]]}',
    "infinity": b'{"latents": [[1e999, 0, 0, 0]]}',
    "beyond float32": b'{"latents": [[1e300, 0, 0, 0]]}',
    "a number of a million digits": b'{"latents": [[' + b"9" * 1_000_000 + b", 0, 0, 0]]}",
    "an exponent of a million digits": b'{"latents": [[1e' + b"9" * 1_000_000 + b", 0, 0, 0]]}",
    "deep lists": b'{"latents": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "many fields": b"{" + b",".join(b'"f%d":1' % index for index in range(60_000)) + b"}",
    "many empty lists": b'{"latents": [' + b"[]," * 1_000_000 + b"[]]}",
    "unknown field": b'{"latents": [[0, 0, 0, 0]], "callback": "http://169.254.169.254/"}',
    "not utf-8": b'{"latents": "\xff\xfe"}',
    "lone surrogate": b'{"latents": [[0, 0, 0, 0]], "model": "\\ud800"}',
    "a nul in a name": b'{"latents": [[0, 0, 0, 0]], "model": "tiny\\u0000"}',
}
ARRAYS = {
    "object dtype": npy((1,), "|O", b"\x80\x04cos\nsystem\n."),
    "structured": npy((1,), [("a", "<f8"), ("b", "|S8")]),
    "a header of petabytes": npy((1 << 50,)),
    "an overflowing header": npy((1 << 62, 1 << 62)),
    "negative": npy((-1, 8, 8, 1)),
    "too short": npy((2, 8, 8, 1)),
    "too long": npy((1, 8, 8, 1), data=bytes(1000)),
    "a header that is code": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('id')   ",
    "a deep header": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535,
}
CASES = [
    *((f"{name} as it is", "/encode", PNG, data) for name, data in IMAGES.items()),
    *(
        (f"{name} in json", "/reconstruct", JSON, as_json(data))
        for name, data in IMAGES.items()
    ),
    *((name, "/decode", JSON, data) for name, data in NUMBERS.items()),
    *((name, "/encode", NPY, data) for name, data in ARRAYS.items()),
    *((f"{name} as latents", "/decode", NPY, data) for name, data in ARRAYS.items()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "body"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_body_made_to_harm_is_answered_at_once_and_without_growing(victim, path, kind, body):
    before, most, done, computed = victim.resident(), [0], threading.Event(), victim.cpu()

    def watch():
        while not done.wait(0.005):
            most[0] = max(most[0], victim.resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = httpx.post(victim.url + path, content=body, headers={"Content-Type": kind}, timeout=60)
    finally:
        done.set()
        watcher.join()
    if answer.status_code != 200 or body not in READABLE:
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert victim.cpu() - computed < SECONDS  # as long as it takes where nobody else computes
    assert most[0] - before < GROWTH


@pytest.mark.parametrize(
    "path",
    [
        "/models/..%2f..%2fetc%2fpasswd",
        "/models/%2e%2e/%2e%2e/etc/passwd",
        "/models/..\\..\\etc",
        "/models/tiny/versions/../../../x",
        "/models/tiny%00",
        "/models/%F0%9F%98%80",
        "/models/%ff%fe",
        "/models/" + "a" * 10_000,
        "/models/tiny/versions/99999999999999999999999999",
        "/models/tiny/versions/1e3",
        "/sample?model=..%2f..%2fetc%2fpasswd",
        "/sample?model=tiny@1%0d%0aX-Evil:%201",
        "/sample?n=99999999999999999999999999999999",
        "/sample?seed=-1",
        "/sample?temperature=nan",
        "/sample?" + "&".join(f"a{index}=1" for index in range(3000)),
        "/explorer/..%2f..%2fsettings.py",
        "/problems/..%2f..%2fx",
    ],
)
def test_names_and_parameters_lead_nowhere(victim, path):
    with httpx.Client(timeout=60) as client:  # as it is: httpx would resolve the dots
        answer = client.get(f"{victim.url}/x", extensions={"target": path.encode()})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-evil" not in answer.headers
    assert "root:" not in answer.text


def problem(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower(), answer[:500]
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-%d: %s\r\n" % (index, b"a" * 50) for index in range(20_000)],
        [b"X: " + b"a" * 200_000 + b"\r\n"],
        [b"Cookie: " + b"a" * 65_000 + b"\r\n"] * 20,
    ],
    ids=["many", "one long", "several long"],
)
def test_a_flood_of_headers_is_cut_off(victim, lines):
    before = victim.resident()
    for end in (b"\r\n", b""):
        status, said = problem(victim.exchange(b"GET /sample HTTP/1.1\r\nHost: x\r\n", b"".join(lines) + end))
        assert status == 431
        assert "longer than 65,536 bytes" in said["detail"]
    assert victim.resident() - before < GROWTH


def test_a_url_that_does_not_end_is_cut_off(victim):
    status, _ = problem(victim.exchange(b"GET /" + b"a" * 300_000))
    assert status == 431


def test_heads_that_trickle_do_not_hold_connections(victim):
    started = time.monotonic()
    answers = []

    def trickle():
        answers.append(victim.exchange(b"GET /sample HTTP/1.1\r\n", *[b"X: 1\r\n"] * 40, pause=0.25))

    threads = [threading.Thread(target=trickle) for _ in range(50)]
    for thread in threads:
        thread.start()
    assert httpx.get(f"{victim.url}/sample", timeout=60).status_code == 200
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 60
    for answer in answers:
        # Whoever sends on to a connection that is closed may find it reset before reading the answer.
        assert not answer or problem(answer)[0] == 408
    assert any(answers)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Content-Length: 1000", b'{"latents": [[0,0,0,0]]}', 408),
        (b"Transfer-Encoding: chunked", b'5\r\n{"lat', 408),
        (b"Content-Length: 99999999999999999999", b"x", 400),
        (b"Content-Length: 1000000000000", b"x", 413),
        (b"Content-Length: 5\r\nContent-Length: 6", b"{}", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", 400),
    ],
)
def test_a_length_that_is_not_true_is_refused(victim, headers, body, status):
    head = b"POST /decode HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    found, _ = problem(victim.exchange(head + headers + b"\r\n\r\n" + body))
    assert found == status
    assert time.monotonic() - started < 60
