"""Images in memory: pixels, labels and a split that never moves an image.

Every source ends as one uint8 array [n, h, w, c]. Who is in which split is decided by the hash of an image's
own bytes, so adding images moves none of the others, and duplicates always fall on the same side. Sets with
an official test split keep it.
"""

import dataclasses
import functools
import gzip
import hashlib
import os
import struct
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training import download

ByteImages: TypeAlias = NDArray[np.uint8]  # [n, h, w, c]
Indices: TypeAlias = NDArray[np.int64]  # [m], sorted

HELD_OUT = 0.1  # of the images, for validation and again for test

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_FILES = {  # SHA-256 of the unpacked bytes: gzip's own header differs between mirrors
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class DataError(Exception):
    """The images cannot be had or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of each part, sorted and disjoint."""

    train: Indices
    validation: Indices
    test: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set. `levels`: how many values a channel can take; `digest`: the SHA-256 of its content."""

    name: str
    pixels: ByteImages
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    split: Split
    levels: int
    licence: str
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    @functools.cached_property
    def binary(self) -> bool:
        """Whether every pixel is 0 or 255."""
        return all(
            bool(np.isin(self.pixels[start : start + 4096], (0, 255)).all())
            for start in range(0, len(self.pixels), 4096)
        )


def load(source: str) -> Images:
    """The images of `source`: `digits` or `mnist`. Raises DataError."""
    if source == "digits":
        return digits()
    if source == "mnist":
        return mnist(data_folder())
    raise DataError(f"no data set is called {source!r}: use digits or mnist")


def data_folder() -> Path:
    """Where data sets lie: `VAESERVE_DATA`, else a cache folder in the user's home."""
    if named := os.environ.get("VAESERVE_DATA"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vaeserve"


def digits() -> Images:
    """scikit-learn's handwritten digits: 1 797 images of 8×8 in 17 levels, built in, no network."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return from_arrays(
        "digits",
        pixels,
        bunch.target.astype(np.int64),
        tuple(str(digit) for digit in range(10)),
        levels=17,
        licence="CC BY 4.0 (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI)",
    )


def mnist(folder: Path) -> Images:
    """MNIST: 60 000 training and 10 000 test images of 28×28, from `folder`/mnist or downloaded to it."""
    parts = {
        name: _idx(download.fetch(MNIST_MIRRORS, f"{name}.gz", folder / "mnist", digest))
        for name, digest in MNIST_FILES.items()
    }
    return from_arrays(
        "mnist",
        np.concatenate([parts["train-images-idx3-ubyte"], parts["t10k-images-idx3-ubyte"]])[..., None],
        np.concatenate([parts["train-labels-idx1-ubyte"], parts["t10k-labels-idx1-ubyte"]]).astype(np.int64),
        tuple(str(digit) for digit in range(10)),
        official_test=len(parts["t10k-labels-idx1-ubyte"]),
        licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes: the MNIST database of handwritten digits)",
    )


def from_arrays(
    name: str,
    pixels: ByteImages,
    labels: NDArray[np.int64] | None = None,
    label_names: tuple[str, ...] | None = None,
    *,
    official_test: int = 0,
    levels: int = 256,
    licence: str = "unknown",
) -> Images:
    """A data set of uint8 [n, h, w, c] and labels [n]; the last `official_test` images are the test split.

    Raises DataError for another shape or type, or when a part of the split would be empty.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(f"images must be uint8 [n, h, w, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise DataError(f"{len(pixels)} images but labels of shape {list(labels.shape)}")
    parts = split(pixels, official_test)
    for part in dataclasses.fields(parts):
        if not len(getattr(parts, part.name)):
            raise DataError(f"{len(pixels)} images are too few: the {part.name} split would be empty")
    digest = _digest(pixels, labels)
    return Images(name, pixels, labels, label_names, parts, levels, licence, digest)


def split(pixels: ByteImages, official_test: int = 0) -> Split:
    """80/10/10 by content hash; with an official test split (the last rows), 90/10 of the others."""
    places = np.array([_place(image) for image in pixels])
    rows = np.arange(len(pixels))
    if official_test:
        test = rows >= len(pixels) - official_test
        validation = ~test & (places < HELD_OUT)
    else:
        validation = places < HELD_OUT
        test = ~validation & (places < 2 * HELD_OUT)
    return Split(rows[~validation & ~test], rows[validation], rows[test])


def _place(image: ByteImages) -> float:
    """A number in [0, 1) that depends on the image's bytes alone."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:6], "big") / 2**48


def _digest(pixels: ByteImages, labels: NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    for start in range(0, len(pixels), 4096):  # in pieces: the array may be a memory map larger than memory
        digest.update(pixels[start : start + 4096].tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _idx(path: Path) -> NDArray[np.uint8]:
    """A gzipped IDX file of unsigned bytes: magic 0x000008, number of axes, their lengths, the bytes."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, axes = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    if (zeros, kind) != (0, 8):
        raise DataError(f"{path} is no IDX file of bytes: delete it, and it is downloaded again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
