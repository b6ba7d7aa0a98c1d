"""MNIST and Fashion-MNIST are read as they are published, from the data folder or a mirror."""

import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest

from tests.training.data.test_download import serving
from training.data import named as sets
from training.data.images import DataError, ImageTarget
from training.data.load import load

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RANDOM.integers(0, 256, (300, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(300, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (50, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(50, dtype=np.uint8) % 10,
}


def idx(array):
    shape = array.shape
    return gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.tobytes())


FILES = {f"{name}.gz": idx(array) for name, array in ARRAYS.items()}


def small(name, mirrors):
    """The set of this name with the digests of FILES."""
    known = sets.IDX_SETS[name]
    contents = [FILES[f"{file}.gz"] for file in sets.FILES]
    if known.of == "content":
        contents = [gzip.decompress(content) for content in contents]
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    return dataclasses.replace(known, mirrors=mirrors, digests=digests)


@pytest.fixture(params=["mnist", "fashion-mnist"])
def name(request, tmp_path, monkeypatch):
    monkeypatch.setenv("VAESERVE_DATA", str(tmp_path))
    return request.param


def test_a_set_is_read_from_the_data_folder(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sets.IDX_SETS, name, small(name, ()))  # no mirror: no network may be asked for
    (tmp_path / name).mkdir()
    for file, content in FILES.items():
        (tmp_path / name / file).write_bytes(content)
    images = load(name)
    assert (images.name, images.shape) == (name, (28, 28, 1))
    assert images.split.test.tolist() == list(range(300, 350))  # the official ones
    np.testing.assert_array_equal(images.pixels[images.split.test, :, :, 0], ARRAYS["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(images.labels[:300], ARRAYS["train-labels-idx1-ubyte"])
    assert images.label_names[9] == {"mnist": "9", "fashion-mnist": "ankle boot"}[name]


def test_a_set_is_downloaded_once(name, tmp_path, monkeypatch):
    with serving(FILES) as server:
        monkeypatch.setitem(sets.IDX_SETS, name, small(name, (server.url,)))
        first, second = load(name), load(name, ImageTarget((20, 16)))
    assert first.shape == (28, 28, 1)
    assert second.shape == (20, 16, 1)
    assert len(server.requests) == 4
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)


def test_what_is_no_idx_file_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x0d\1" + bytes(8)))  # floats
    with pytest.raises(DataError, match="not an IDX file of bytes"):
        sets._read(tmp_path / "a.gz")


def test_the_published_digests_are_the_ones_pinned():
    """Literals, so that nobody changes one by accident; MNIST's are of what gzip unpacks."""
    assert [digest[:8] for digest in sets.MNIST.digests] == ["ba891046", "65a50cbb", "0fa7898d", "ff7bcfd4"]
    assert sets.MNIST.of == "content"
    fashion = sets.FASHION_MNIST
    assert [digest[:8] for digest in fashion.digests] == ["3aede38d", "a04f1713", "346e55b9", "67da17c7"]
    assert fashion.of == "file"
