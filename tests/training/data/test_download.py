"""Downloads survive a broken connection, and wrong or incomplete files are never kept."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from training.data import download


@contextlib.contextmanager
def serving(files, breaks=0):
    """A loopback server of `files`; its first `breaks` answers end after half of what they promised."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content = files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if len(requests) <= breaks else content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/", requests=requests)
        finally:
            server.shutdown()
            thread.join()


CONTENT = np.random.default_rng(0).bytes(100_000)
PACKED = gzip.compress(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_broken_transfer_is_repeated(tmp_path):
    with serving({"a.gz": PACKED}, breaks=2) as server:
        path = download.fetch([server.url], "a.gz", tmp_path, SHA256)
    assert path.read_bytes() == PACKED
    assert server.requests == ["/a.gz"] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.gz"]


def test_a_transfer_that_always_breaks_leaves_nothing(tmp_path):
    with (
        serving({"a.gz": PACKED}, breaks=download.ROUNDS) as server,
        pytest.raises(download.DownloadError, match=f"the connection broke after {len(PACKED) // 2} of"),
    ):
        download.fetch([server.url], "a.gz", tmp_path, SHA256)
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_is_refused_and_nothing_is_kept(tmp_path):
    with (
        serving({"a.gz": gzip.compress(b"something else")}) as server,
        pytest.raises(download.DownloadError, match=r"SHA-256 is not"),
    ):
        download.fetch([server.url], "a.gz", tmp_path, SHA256)
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_is_asked_when_one_has_nothing_or_something_else(tmp_path):
    with (
        serving({}) as empty,
        serving({"a.gz": b"no gzip"}) as wrong,
        serving({"a.gz": PACKED}) as good,
    ):
        mirrors = ["http://127.0.0.1:9/", empty.url, wrong.url, good.url]
        assert download.fetch(mirrors, "a.gz", tmp_path, SHA256).read_bytes() == PACKED
    assert len(empty.requests) == 1  # a 404 is not asked twice


def test_a_digest_may_be_of_the_file_itself(tmp_path):
    packed = hashlib.sha256(PACKED).hexdigest()
    with serving({"a.gz": PACKED}) as server:
        assert download.fetch([server.url], "a.gz", tmp_path, packed, of="file").read_bytes() == PACKED
        again = gzip.compress(CONTENT, compresslevel=1)  # the same content, another file
        (tmp_path / "a.gz").write_bytes(again)
        with pytest.raises(download.DownloadError, match="delete it"):
            download.fetch([server.url], "a.gz", tmp_path, packed, of="file")
        assert download.fetch([server.url], "a.gz", tmp_path, SHA256).read_bytes() == again


def test_a_damaged_file_is_reported_and_left_alone(tmp_path):
    (tmp_path / "a.gz").write_bytes(PACKED[:-100])
    with pytest.raises(download.DownloadError, match="delete it"):
        download.fetch([], "a.gz", tmp_path, SHA256)
    assert (tmp_path / "a.gz").read_bytes() == PACKED[:-100]
