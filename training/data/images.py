"""A data set: pixels in memory or in a mapped file, labels, and a split that never moves an image.

Every source becomes one uint8 array [n, h, w, c]. The hash of an image's bytes determines its split, so new
images do not move others, and duplicates are always in the same split. An official test split is kept.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.config import Fit, TrainConfig

ByteImages: TypeAlias = NDArray[np.uint8]  # [n, h, w, c]
Indices: TypeAlias = NDArray[np.int64]  # [m], sorted
Say: TypeAlias = Callable[[str], None]

HELD_OUT = 0.1  # share of the images for validation, and again for test
FEWEST = 100  # usable images; a tenth of fewer is too small to evaluate a model
PIECE = 1 << 24  # bytes read at once: the array may be a memory map larger than memory


class DataError(Exception):
    """The images cannot be read or used. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class ImageTarget:
    """The size and channels that images are resized to. None: guessed from the images."""

    image_size: tuple[int, int] | None = None  # height, width
    channels: int | None = None  # 1 or 3
    fit: Fit = "contain"
    memory_limit: int = 1000  # MB; a larger set is kept in a memory-mapped file

    @classmethod
    def of(cls, config: TrainConfig) -> "ImageTarget":
        """The target of a training run."""
        return cls(config.image_size, config.channels, config.fit, config.memory_limit)


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of each part, sorted and disjoint."""

    train: Indices
    validation: Indices
    test: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set of pixels uint8 [n, h, w, c] and labels int64 [n].

    `levels` is the number of values of a channel, `digest` the SHA-256 of the content, `skipped` a line for
    each file that is not a usable image.
    """

    name: str
    pixels: ByteImages
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    split: Split
    levels: int
    licence: str
    digest: str
    skipped: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    @functools.cached_property
    def binary(self) -> bool:
        """Whether every pixel is 0 or 255."""
        return all(bool(((piece == 0) | (piece == 255)).all()) for piece in pieces(self.pixels))


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of an array, read on slicing, so a memory-mapped array is never in memory as a whole."""

    pixels: ByteImages
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> ByteImages:
        return self.pixels[self.rows[part]]


def from_arrays(
    name: str,
    pixels: ByteImages,
    labels: NDArray[np.int64] | None = None,
    label_names: tuple[str, ...] | None = None,
    *,
    official_test: int = 0,
    levels: int = 256,
    licence: str = "unknown",
    skipped: tuple[str, ...] = (),
) -> Images:
    """A data set of uint8 [n, h, w, c] and labels [n]; the last `official_test` images are the test split.

    DataError for another shape or type, for fewer than 100 images, or if a part of the split would have fewer
    than two.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(f"images must be uint8 [n, h, w, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise DataError(f"{len(pixels)} images but labels of shape {list(labels.shape)}")
    if len(pixels) < FEWEST:
        beside = f" ({len(skipped)} files were skipped, the first: {skipped[0]})" if skipped else ""
        raise DataError(f"{name} has {len(pixels)} usable images{beside}; a model needs at least {FEWEST}")
    parts = split(pixels, official_test)
    for part in dataclasses.fields(parts):
        if (n := len(getattr(parts, part.name))) < 2:  # no spread, nothing to interpolate between
            raise DataError(f"{len(pixels)} images are too few: the {part.name} split would have {n}")
    digest = _digest(pixels, labels)
    return Images(name, pixels, labels, label_names, parts, levels, licence, digest, skipped)


def split(pixels: ByteImages, official_test: int = 0) -> Split:
    """80/10/10 by content hash; with an official test split (the last rows), 90/10 of the others."""
    places = np.fromiter((_place(image) for piece in pieces(pixels) for image in piece), float, len(pixels))
    rows = np.arange(len(pixels))
    if official_test:
        test = rows >= len(pixels) - official_test
        validation = ~test & (places < HELD_OUT)
    else:
        validation = places < HELD_OUT
        test = ~validation & (places < 2 * HELD_OUT)
    return Split(rows[~validation & ~test], rows[validation], rows[test])


def pieces(pixels: ByteImages) -> Iterator[ByteImages]:
    """The array in consecutive pieces of 16 MB."""
    step = max(1, PIECE // max(1, pixels[:1].nbytes))
    for start in range(0, len(pixels), step):
        yield pixels[start : start + step]


def _place(image: ByteImages) -> float:
    """A number in [0, 1) that depends on the image's bytes alone."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:6], "big") / 2**48


def _digest(pixels: ByteImages, labels: NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    for piece in pieces(pixels):
        digest.update(piece.tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
