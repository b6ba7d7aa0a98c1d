"""Splits that never move an image, sets read as they are published, downloads that survive a broken line."""

import contextlib
import gzip
import hashlib
import http.server
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from training import data, download
from training.data import DataError


def random_images(n, seed=0, shape=(5, 4, 1)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def members(images, rows):
    return {images[row].tobytes() for row in rows}


def test_adding_and_shuffling_images_moves_none_of_them():
    few, more = random_images(300), random_images(300, seed=1)
    before = data.split(few)
    together = np.concatenate([more, few])[np.random.default_rng(2).permutation(600)]
    after = data.split(together)
    for part in ("train", "validation", "test"):
        assert members(few, getattr(before, part)) <= members(together, getattr(after, part))


def test_duplicates_fall_on_the_same_side():
    images = random_images(200)
    parts = data.split(np.concatenate([images, images[::-1]]))
    doubled = np.concatenate([images, images[::-1]])
    sides = [members(doubled, rows) for rows in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == 200


@pytest.mark.parametrize(("official", "shares"), [(0, (0.8, 0.1, 0.1)), (2000, (0.72, 0.08, 0.2))])
def test_the_parts_are_disjoint_complete_and_of_the_contracts_sizes(official, shares):
    parts = data.split(random_images(10_000, shape=(2, 2, 3)), official)
    rows = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(rows)) == list(range(10_000))
    assert [len(part) / 10_000 for part in rows] == pytest.approx(shares, abs=0.01)
    if official:
        assert parts.test.tolist() == list(range(8000, 10_000))


def test_digits():
    digits = data.load("digits")
    assert digits.pixels.shape == (1797, 8, 8, 1)
    assert digits.pixels.dtype == np.uint8
    assert len(np.unique(digits.pixels)) == digits.levels == 17
    assert (digits.pixels.min(), digits.pixels.max()) == (0, 255)
    assert digits.labels.dtype == np.int64
    assert digits.label_names == tuple("0123456789")
    assert not digits.binary
    # A literal: the split is part of every published figure, so it must not change unnoticed.
    assert [len(part) for part in (digits.split.train, digits.split.validation, digits.split.test)] == [
        1412,
        221,
        164,
    ]
    assert digits.digest == data.load("digits").digest


def test_the_digest_knows_pixels_labels_and_shape():
    images, labels = random_images(200), np.zeros(200, np.int64)
    changed, relabelled = images.copy(), labels.copy()
    changed[7, 0, 0, 0] ^= 1
    relabelled[7] = 1
    digests = {
        data.from_arrays("a", *arrays).digest
        for arrays in (
            (images, labels),
            (images,),
            (changed, labels),
            (images, relabelled),
            (images.reshape(200, 4, 5, 1), labels),
        )
    }
    assert len(digests) == 5


def test_black_and_white_images_are_known_as_such():
    images = random_images(200)
    assert data.from_arrays("a", np.where(images > 127, 255, 0).astype(np.uint8)).binary
    assert not data.from_arrays("a", images).binary


def test_unusable_images_are_refused_with_a_reason():
    with pytest.raises(DataError, match="digits or mnist"):
        data.load("imagenet")
    with pytest.raises(DataError, match="too few"):
        data.from_arrays("a", random_images(2))
    with pytest.raises(DataError, match="float64"):
        data.from_arrays("a", np.zeros((200, 4, 4, 1)))
    with pytest.raises(DataError, match="labels"):
        data.from_arrays("a", random_images(200), np.zeros(3, np.int64))


def idx(array):
    shape = array.shape
    return gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.tobytes())


@pytest.fixture
def small_mnist(monkeypatch):
    """Files like MNIST's, and their digests in place of the real ones."""
    arrays = {
        "train-images-idx3-ubyte": random_images(300, shape=(28, 28)),
        "train-labels-idx1-ubyte": np.arange(300, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": random_images(50, seed=1, shape=(28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(50, dtype=np.uint8) % 10,
    }
    files = {name: idx(array) for name, array in arrays.items()}
    digests = {name: hashlib.sha256(gzip.decompress(content)).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data, "MNIST_FILES", digests)
    return SimpleNamespace(arrays=arrays, files={f"{name}.gz": content for name, content in files.items()})


def test_mnist_is_read_from_the_data_folder(small_mnist, tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for name, content in small_mnist.files.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path))
    monkeypatch.setattr(data, "MNIST_MIRRORS", ())  # no network may be asked for
    mnist = data.load("mnist")
    assert mnist.shape == (28, 28, 1)
    assert mnist.split.test.tolist() == list(range(300, 350))
    np.testing.assert_array_equal(
        mnist.pixels[mnist.split.test, :, :, 0], small_mnist.arrays["t10k-images-idx3-ubyte"]
    )
    np.testing.assert_array_equal(mnist.labels[:300], small_mnist.arrays["train-labels-idx1-ubyte"])


def test_mnist_is_downloaded_once(small_mnist, tmp_path, monkeypatch):
    with serving(small_mnist.files) as server:
        monkeypatch.setattr(data, "MNIST_MIRRORS", (server.url,))
        first, second = data.mnist(tmp_path), data.mnist(tmp_path)
    assert first.digest == second.digest
    assert len(server.requests) == 4
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(small_mnist.files)


def test_the_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path / "data"))
    assert data.data_folder() == tmp_path / "data"
    monkeypatch.delenv("VAESERVE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.data_folder() == tmp_path / "vaeserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.data_folder() == tmp_path / ".cache" / "vaeserve"


@contextlib.contextmanager
def serving(files, breaks=0, ranges=True):
    """A loopback server of `files`; its first `breaks` answers end after half of what they promised."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.headers.get("Range"))
            content = files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            start = 0
            if ranges and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
            rest = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if len(requests) <= breaks else rest)

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


def test_a_broken_transfer_goes_on_where_it_broke(tmp_path):
    with serving({"a.gz": PACKED}, breaks=2) as server:
        path = download.fetch([server.url], "a.gz", tmp_path, SHA256)
    assert path.read_bytes() == PACKED
    half = len(PACKED) // 2
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + (len(PACKED) - half) // 2}-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.gz"]


def test_what_had_arrived_serves_the_next_call(tmp_path):
    with (
        serving({"a.gz": PACKED}, breaks=download.ATTEMPTS) as server,
        pytest.raises(download.DownloadError, match="the connection broke"),
    ):
        download.fetch([server.url], "a.gz", tmp_path, SHA256)
    have = (tmp_path / "a.gz.part").stat().st_size
    assert not (tmp_path / "a.gz").exists()
    with serving({"a.gz": PACKED}) as server:
        assert download.fetch([server.url], "a.gz", tmp_path, SHA256).read_bytes() == PACKED
    assert server.requests == [f"bytes={have}-"]


def test_a_server_without_ranges_starts_anew(tmp_path):
    (tmp_path / "a.gz.part").write_bytes(PACKED[:1000])
    with serving({"a.gz": PACKED}, ranges=False) as server:
        assert download.fetch([server.url], "a.gz", tmp_path, SHA256).read_bytes() == PACKED


def test_a_finished_part_is_taken_and_too_long_a_part_is_not_kept(tmp_path):
    part = tmp_path / "a.gz.part"
    part.write_bytes(PACKED)  # killed between the last byte and the rename
    with serving({"a.gz": PACKED}) as server:
        assert download.fetch([server.url], "a.gz", tmp_path, SHA256).read_bytes() == PACKED
        (tmp_path / "a.gz").rename(part)
        part.write_bytes(PACKED + b"more")
        assert download.fetch([server.url] * 2, "a.gz", tmp_path, SHA256).read_bytes() == PACKED


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


def test_a_damaged_file_is_reported_and_left_alone(tmp_path):
    (tmp_path / "a.gz").write_bytes(PACKED[:-100])
    with pytest.raises(download.DownloadError, match="delete it"):
        download.fetch([], "a.gz", tmp_path, SHA256)
    assert (tmp_path / "a.gz").read_bytes() == PACKED[:-100]
