"""Reads a data set from a folder of images of any nesting, formats, sizes and modes, and skips other files.

- The sub-folders of the first level are the classes, if there are two or more and they contain every image.
- `train` and `test` (and `val`) as the only sub-folders are an official split. Their sub-folders are the
  classes, and validation is taken from train by content, as for every source.
- Files are read twice: their headers for size and colour, unless both are given, then their pixels.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.cache import stored
from training.data.images import ByteImages, DataError, Images, ImageTarget, Say, from_arrays
from training.data.sources import guessed_size, model_name, printable
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.images import FORMATS, ImageError, image_size, read_image

SERVED = frozenset(suffix for each in FORMATS.values() for suffix in each.suffixes)
REWRITTEN = frozenset({".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"})  # not read by the service
TRAIN = frozenset({"train", "training", "val", "valid", "validation"})
TEST = frozenset({"test", "testing"})
LONGEST_CLASS = 200  # characters of the name of a class: a manifest has at most 256
TOGETHER = 64  # files per task of the pool
REPORT_EVERY = 20.0  # seconds

Found = TypeVar("Found")


def read_folder(folder: Path, target: ImageTarget, say: Say) -> Images:
    """Read every image below `folder` at one size. Raises DataError for fewer than 100.

    Decoding releases Python's lock, so threads are enough.
    """
    names, skipped = _names(folder)
    test = _official_test(names)
    names.sort(key=lambda name: name in test)  # stable: the test images come last
    headers = np.zeros((0, 3), np.int32)
    if target.image_size is None or target.channels is None:
        headers, unreadable = _headers(folder, names, say)
        skipped |= unreadable
        names = [name for name in names if name not in unreadable]
    if not names:
        raise DataError(f"{folder} has no images and {len(skipped)} other files")
    height, width = target.image_size or guessed_size(headers[:, :2])
    channels = target.channels or (3 if _coloured(folder, names, headers[:, 2]) else 1)
    how = "as asked" if target.image_size and target.channels else "guessed from the files"
    say(
        f"{len(names):,} image files in {folder}, resized to {height}×{width}×{channels} "
        f"({target.fit}; {how}); choose with --image-size, --channels, --fit"
    )

    def fill(out: ByteImages) -> dict[int, str]:
        def one(row: int) -> str | None:
            try:
                out[row] = read_image(
                    _content(folder / names[row]),
                    height=height,
                    width=width,
                    channels=channels,
                    fit=target.fit,
                )
            except (ImageError, OSError) as error:
                return _why(error)
            return None

        return {row: why for row, why in enumerate(_each(one, len(names), "decoded", say)) if why}

    def key() -> str:
        stats = ((name, os.stat(folder / name)) for name in names)
        listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
        return f"{folder.resolve()} {target.fit}\n{listing}"

    pixels, bad = stored((len(names), height, width, channels), key, target, fill, say)
    skipped |= {names[row]: why for row, why in bad.items()}
    if skipped:
        first = ", ".join(sorted(skipped)[:3])
        say(f"{len(skipped):,} files skipped: {first}{', …' if len(skipped) > 3 else ''}")
    names = [name for row, name in enumerate(names) if row not in bad]
    labels, label_names = _classes(names, level=1 if test else 0, say=say)
    return from_arrays(
        model_name(folder),
        pixels,
        labels,
        label_names,
        official_test=sum(name in test for name in names) if test else 0,
        licence="not known to vaeserve: that of the images in the folder",
        skipped=tuple(f"{name}: {why}" for name, why in sorted(skipped.items())),
    )


def _names(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The sorted paths below `folder` that may be images, and {path: why} for the other files.

    Hidden files and folders are ignored. Links to folders are followed, once each.
    """
    names, others, seen = [], {}, set()
    for home, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(home)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        prefix = Path(home).relative_to(folder).as_posix() + "/"
        prefix = "" if prefix == "./" else prefix
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if suffix in SERVED or suffix in REWRITTEN or not suffix:
                names.append(prefix + file)
            else:
                others[prefix + file] = f"{suffix} is not an image format that can be read"
    return sorted(names), others


def _headers(folder: Path, names: list[str], say: Say) -> tuple[NDArray[np.int32], dict[str, str]]:
    """(height, width, channels) of each readable file, int32 [m, 3], and {path: why} for the others."""

    def one(row: int) -> tuple[int, int, int] | str:
        try:
            return image_size(_content(folder / names[row]))
        except (ImageError, OSError) as error:
            return _why(error)

    sizes = np.zeros((len(names), 3), np.int32)
    unreadable = {}
    for row, found in enumerate(_each(one, len(names), "inspected", say)):
        if isinstance(found, str):
            unreadable[names[row]] = found
        else:
            sizes[row] = found
    return sizes[sizes[:, 0] > 0], unreadable


def _coloured(folder: Path, names: list[str], channels: NDArray[np.int32]) -> bool:
    """Whether any image has a colour header and pixels that are not grey."""
    for row in np.flatnonzero(channels == 3):
        try:
            image = read_image(_content(folder / names[row]), height=32, width=32, channels=3, fit="stretch")
        except (ImageError, OSError):
            continue
        if (image != image[:, :, :1]).any():
            return True
    return False


def _official_test(names: list[str]) -> frozenset[str]:
    """The names below `test`, if the only sub-folders are `train` and `test` (and `val`)."""
    tops = {name.partition("/")[0].lower() for name in names}
    if not (tops & TEST and tops & TRAIN and tops <= TEST | TRAIN):
        return frozenset()
    return frozenset(name for name in names if name.partition("/")[0].lower() in TEST)


def _classes(
    names: list[str], level: int, say: Say
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels [n] and their names from the sub-folders at `level`; None if those are not classes."""
    found = [name.split("/")[level] if name.count("/") > level else "" for name in names]
    found = [printable(name)[:LONGEST_CLASS] for name in found]
    classes = sorted(set(found))
    if len(classes) < 2:
        return None, None
    if "" in classes:
        say(f"no labels: {found.count('')} images are not in a sub-folder")
        return None, None
    say(f"{len(classes)} classes from the sub-folders: {', '.join(classes[:5])}{', …' * (len(classes) > 5)}")
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[name] for name in found], np.int64), tuple(classes)


def _content(path: Path) -> bytes:
    """The bytes of a file that `vaeserve.bundle.images` reads; TIFF and PNM are rewritten as PNG."""
    content = path.read_bytes()
    if path.suffix.lower() not in REWRITTEN:
        return content
    try:
        opened = Image.open(io.BytesIO(content), formats=("TIFF", "PPM"))
        file = io.BytesIO()
        image: Image.Image = (
            opened if opened.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else opened.convert("RGB")
        )
        image.save(file, "PNG", compress_level=0)
    except Exception as error:  # Pillow's parsers raise many kinds of errors for a broken file
        raise ImageError(f"the image is broken or truncated ({error})") from error
    return file.getvalue()


def _why(error: Exception) -> str:
    """The message without its advice for callers of the service."""
    return str(error).partition("; send")[0]


def _each(work: Callable[[int], Found], count: int, done: str, say: Say) -> Iterator[Found]:
    """`work(row)` for every row, in order, on all CPUs; reports progress every 20 seconds."""

    def some(start: int) -> list[Found]:
        return [work(row) for row in range(start, min(start + TOGETHER, count))]

    reported, row = time.monotonic(), 0
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for results in pool.map(some, range(0, count, TOGETHER)):
            yield from results
            row += len(results)
            if time.monotonic() - reported > REPORT_EVERY:
                reported = time.monotonic()
                say(f"{done} {row:,} of {count:,}")
