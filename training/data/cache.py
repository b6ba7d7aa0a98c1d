"""Keeps decoded images in memory, or in a memory-mapped file above a size limit.

A mapped file costs no anonymous memory: its pages belong to the system's file cache. It is in the data
folder, under a name made from everything that determines its content, so the next run can use it again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable

import numpy as np

from training.data.images import ByteImages, DataError, ImageTarget, Say
from training.data.sources import data_folder, guessed_size
from vaeserve.bundle.atomic import move_into_place, write_atomically
from vaeserve.bundle.images import fit_array

Fill = Callable[[ByteImages], dict[int, str]]


def stored(
    shape: tuple[int, int, int, int], key: Callable[[], str], target: ImageTarget, fill: Fill, say: Say
) -> tuple[ByteImages, dict[int, str]]:
    """The uint8 images that `fill` writes into an array, and the errors that it returns.

    `fill` returns {row: why} for the rows it could not write; they are left out of the result. Below
    `target.memory_limit` the array is in memory. Above, it is a read-only map of a file named after `key()`,
    and `fill` is called only if that file does not exist. Raises DataError if the disk is too small.
    """
    size = int(np.prod(shape))
    if size <= target.memory_limit * 1_000_000:
        array: ByteImages = np.zeros(shape, np.uint8)
        bad = fill(array)
        return array[: _close_gaps(array, bad)], bad
    folder = data_folder() / "decoded"
    name = hashlib.sha256(f"1 {shape} {key()}".encode(errors="surrogateescape")).hexdigest()[:32]
    path, notes = folder / f"{name}.npy", folder / f"{name}.json"
    if not (path.exists() and notes.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size + 100_000_000:
            raise DataError(
                f"the decoded images need {size / 1e9:.1f} GB in {folder} but less is free: free "
                "some space, set VAESERVE_DATA to a larger disk, or choose a smaller --image-size"
            )
        say(f"decoding into {path} ({size / 1e9:.1f} GB, memory-mapped, used again by the next run)")
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            mapped = np.lib.format.open_memmap(draft, "w+", np.uint8, shape)
            bad = fill(np.asarray(mapped))
            _close_gaps(np.asarray(mapped), bad)
            mapped.flush()
            del mapped
            write_atomically(notes, json.dumps(bad))
            move_into_place(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    bad = {int(row): why for row, why in json.loads(notes.read_text()).items()}
    return np.asarray(np.load(path, mmap_mode="r"))[: shape[0] - len(bad)], bad


def sized(pixels: ByteImages, key: str, target: ImageTarget, say: Say) -> ByteImages:
    """Images uint8 [n, h, w, 1 or 3], resized to the target or to the size guessed for such a folder."""
    height, width = target.image_size or guessed_size(np.array([pixels.shape[1:3]], np.int32))
    channels = target.channels or pixels.shape[3]
    if (height, width, channels) == pixels.shape[1:]:
        return pixels
    say(
        f"resized from {'×'.join(map(str, pixels.shape[1:]))} to {height}×{width}×{channels} ({target.fit}); "
        "choose with --image-size, --channels, --fit"
    )

    def fill(out: ByteImages) -> dict[int, str]:
        for row, image in enumerate(pixels):
            out[row] = fit_array(image, height=height, width=width, channels=channels, fit=target.fit)
        return {}

    shape = (len(pixels), height, width, channels)
    return stored(shape, lambda: f"{key} {target.fit}", target, fill, say)[0]


def _close_gaps(array: ByteImages, bad: dict[int, str]) -> int:
    """Move the good rows to the front, in place and in order; return their number."""
    if not bad:
        return len(array)
    good = [row for row in range(len(array)) if row not in bad]
    for place, row in enumerate(good):
        if place != row:
            array[place] = array[row]
    return len(good)
