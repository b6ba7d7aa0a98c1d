"""Images in memory or in a mapped file: pixels, labels and a split that never moves an image.

Every source ends as one uint8 array [n, h, w, c]. Who is in which split is decided by the hash of an image's
own bytes, so adding images moves none of the others, and duplicates always fall on the same side. Sets with
an official test split keep it.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.config import Fit, TrainConfig

ByteImages: TypeAlias = NDArray[np.uint8]  # [n, h, w, c]
Indices: TypeAlias = NDArray[np.int64]  # [m], sorted
Say: TypeAlias = Callable[[str], None]

HELD_OUT = 0.1  # of the images, for validation and again for test
FEWEST = 100  # usable images: with fewer, a tenth for validation says nothing
FEW = 500  # below that the user is warned
LARGEST_SIDE = 64  # of a guessed size: what trains on a CPU in an evening
PIECE = 1 << 24  # bytes looked at at once: the array may be a memory map larger than memory
SETS = ("digits", "mnist", "fashion-mnist")


class DataError(Exception):
    """The images cannot be had or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What images are to be brought to. None: guessed from the images themselves."""

    image_size: tuple[int, int] | None = None  # height, width
    channels: int | None = None  # 1 or 3
    fit: Fit = "contain"
    memory_limit: int = 1000  # MB; a larger set lies in a file that is mapped into memory

    @classmethod
    def of(cls, config: TrainConfig) -> "Wanted":
        return cls(config.image_size, config.channels, config.fit, config.memory_limit)


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of each part, sorted and disjoint."""

    train: Indices
    validation: Indices
    test: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set. `levels`: how many values a channel can take; `digest`: the SHA-256 of its content;
    `skipped`: a line for each file that is no usable image."""

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


class Slices(Protocol):
    """Images of which a slice is uint8 [m, h, w, c]: an array, or a `Part` of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> ByteImages: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a set, read as they are sliced: of a mapped set, no more is ever in memory."""

    pixels: ByteImages
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> ByteImages:
        return self.pixels[self.rows[part]]


def load(source: str, wanted: Wanted = Wanted(), say: Say = lambda text: None) -> Images:
    """The images of `source`: the name of a set, a folder, or a .npz or .npy file.

    `say` is told what was guessed and what was skipped. Raises DataError, and DownloadError for a set that
    has to be downloaded and cannot be.
    """
    path = Path(source)
    # Imported here: each kind of source needs its own libraries, and a rented machine has few of them.
    if source in SETS:
        from training.data import named as sets

        images = sets.load(source, data_folder(), wanted, say)
    elif path.is_dir():
        from training.data.folder import read_folder

        images = read_folder(path, wanted, say)
    elif path.suffix in (".npz", ".npy") and path.is_file():
        from training.data.arrays import read_arrays

        images = read_arrays(path, wanted, say)
    elif path.exists():
        raise DataError(f"{source} is neither a folder of images nor a .npz or .npy file")
    else:
        raise DataError(
            f"no data set is called {source!r} and nothing lies there: use {', '.join(SETS)}, a folder of "
            "images, or a .npz or .npy file"
        )
    if len(images.pixels) < FEW:
        say(f"warning: {len(images.pixels)} images are few; a good model needs thousands")
    return images


def data_folder() -> Path:
    """Where data sets lie: `VAESERVE_DATA`, else a cache folder in the user's home."""
    if named := os.environ.get("VAESERVE_DATA"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vaeserve"


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

    Raises DataError for another shape or type, for fewer than 100 images, or when a part of the split would
    have less than two.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(f"images must be uint8 [n, h, w, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise DataError(f"{len(pixels)} images but labels of shape {list(labels.shape)}")
    if len(pixels) < FEWEST:
        beside = f" ({len(skipped)} files were skipped, the first: {skipped[0]})" if skipped else ""
        raise DataError(
            f"{name} has {len(pixels)} usable images{beside}: too few, a model needs at least {FEWEST}"
        )
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


def guessed_size(sizes: NDArray[np.int32]) -> tuple[int, int]:
    """One size for images of these heights and widths, [n, 2].

    Their median where all have the same aspect ratio (within 5 %), else a square of the median side; no
    side longer than 64.
    """
    height, width = np.median(sizes, axis=0)
    if (np.abs(sizes[:, 0] / sizes[:, 1] / (height / width) - 1) > 0.05).any():
        height = width = np.median(sizes)
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return max(4, round(height * scale)), max(4, round(width * scale))


def model_name(path: Path) -> str:
    """A name for the data that can also be a model's, from the last part of their path."""
    slug = re.sub(
        r"[^a-z0-9._-]+", "-", path.resolve().stem.lower() if path.is_file() else path.resolve().name.lower()
    )
    slug = slug.strip("._-")[:64]
    return slug if slug and slug != "stats" else "images"


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
