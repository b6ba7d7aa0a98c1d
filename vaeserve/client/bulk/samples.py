"""The images of a bulk job as one file, or as a folder of PNGs."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.job import Job
from vaeserve.client.bulk.tables import array_of, member
from vaeserve.client.errors import ClientError
from vaeserve.client.files import atomic_write
from vaeserve.client.png import png

SUFFIXES = (".png", ".npy", ".npz", "")  # the last is that of a folder
SHEET = 4096  # images of a contact sheet, which is made in memory


def check(output: Path, n: int) -> None:
    """ClientError if `n` images cannot become this output, before the work instead of after it."""
    if output.suffix.lower() == ".png" and n > SHEET:
        raise ClientError(f"a contact sheet has at most {SHEET:,} images, not {n:,}; write .npy")
    if output.suffix == "" and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ClientError(f"{output} exists and is not an empty folder; remove it, or choose another -o")


def merge(job: Job, output: Path) -> None:
    """Write the output of a finished job atomically. Entries that failed have no image."""
    write: dict[str, Callable[[Job, Path], None]] = {".png": _png, ".npy": _npy, ".npz": _npz, "": _folder}
    write[output.suffix.lower()](job, output)


def _png(job: Job, output: Path) -> None:
    with atomic_write(output) as file:
        file.write(png(np.concatenate(list(_images(job)))))


def _npy(job: Job, output: Path) -> None:
    first = next(_images(job))
    with atomic_write(output) as file:
        array_of(file, first.dtype, (_count(job), *first.shape[1:]), _images(job))


def _npz(job: Job, output: Path) -> None:
    """images, seed and model, as numpy.savez writes them."""
    first, model = next(_images(job)), np.array(job.model)
    with atomic_write(output) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        member(archive, "seed", np.dtype(np.int64), (), iter([np.array(job.seed)]))
        member(archive, "model", model.dtype, (), iter([model]))
        member(archive, "images", first.dtype, (_count(job), *first.shape[1:]), _images(job))


def _folder(job: Job, output: Path) -> None:
    """<row>.png for each image: in the folder of the job first, which is then renamed."""
    draft = job.folder / "images"
    if output.exists() and any(output.iterdir()):
        # The last run was killed after the rename: there was no such folder when the job began.
        return
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    rows = iter(range(job.count))
    for images in _images(job):
        for image in images:
            with (draft / f"{next(rows):08d}.png").open("wb") as file:
                file.write(png(image[None]))
    if output.exists():
        output.rmdir()  # is empty
    os.replace(draft, output)


def _images(job: Job) -> Iterator[NDArray[Any]]:
    return (part.columns["images"] for part in job.parts(["images"]) if len(part.entries))


def _count(job: Job) -> int:
    return sum(len(part.entries) for part in job.parts(()))
