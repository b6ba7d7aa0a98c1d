"""The folder of data sets, and a size and a name for a user's own images."""

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LARGEST_SIDE = 64  # of a guessed size; larger models do not train on a CPU in an evening
SETS = ("digits", "mnist", "fashion-mnist")


def data_folder() -> Path:
    """The folder of data sets: `VAESERVE_DATA`, else a cache folder in the user's home."""
    if named := os.environ.get("VAESERVE_DATA"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vaeserve"


def guessed_size(sizes: NDArray[np.int32]) -> tuple[int, int]:
    """One size for images of these heights and widths, [n, 2].

    It is their median if all have the same aspect ratio (within 5 %), else a square of the median side. No
    side is longer than 64.
    """
    height, width = np.median(sizes, axis=0)
    if (np.abs(sizes[:, 0] / sizes[:, 1] / (height / width) - 1) > 0.05).any():
        height = width = np.median(sizes)
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return max(4, round(height * scale)), max(4, round(width * scale))


def model_name(path: Path) -> str:
    """A name for the data, from the last part of their path, that can also be the name of a model."""
    slug = re.sub(
        r"[^a-z0-9._-]+", "-", path.resolve().stem.lower() if path.is_file() else path.resolve().name.lower()
    )
    slug = slug.strip("._-")[:64]
    return slug if slug and slug != "stats" else "images"


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are shown as `\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
