"""The samples of a bulk job as one file, or as a folder of PNGs; sample r of the seed is row r."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.job import Job, whole
from vaeserve.client.bulk.tables import array_of, member
from vaeserve.client.errors import ClientError
from vaeserve.client.png import png

SUFFIXES = (".png", ".npy", ".npz", "")  # the last is a folder's
SHEET = 4096  # images of a contact sheet: nobody looks at more, and it is made in memory


def check(output: Path, n: int) -> None:
    """ClientError if `n` samples cannot become this output; better before the work than after it."""
    if output.suffix.lower() == ".png" and n > SHEET:
        raise ClientError(f"a contact sheet has at most {SHEET:,} images; a folder, .npy or .npz take {n:,}")
    if output.suffix == "" and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ClientError(f"{output} is there and is not an empty folder; remove it, or name another")


def merge(job: Job, output: Path) -> None:
    """Write the output of a job that is done; it appears in one step."""
    write: dict[str, Callable[[Job, Path], None]] = {".png": _png, ".npy": _npy, ".npz": _npz, "": _folder}
    write[output.suffix.lower()](job, output)


def _png(job: Job, output: Path) -> None:
    with whole(output) as file:
        file.write(png(np.concatenate(list(_images(job)))))


def _npy(job: Job, output: Path) -> None:
    first = next(_images(job))
    with whole(output) as file:
        array_of(file, first.dtype, (job.count, *first.shape[1:]), _images(job))


def _npz(job: Job, output: Path) -> None:
    """images, seed and model; as numpy.savez writes it."""
    first, model = next(_images(job)), np.array(job.model)
    with whole(output) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        member(archive, "seed", np.dtype(np.int64), (), iter([np.array(job.seed)]))
        member(archive, "model", model.dtype, (), iter([model]))
        member(archive, "images", first.dtype, (job.count, *first.shape[1:]), _images(job))


def _folder(job: Job, output: Path) -> None:
    """<row>.png for each, in the job's folder first; of it the whole folder is renamed."""
    draft = job.folder / "images"
    if output.exists() and any(output.iterdir()):
        # Killed between this and the end of the job; there was no such folder when the job began.
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
    return (part.columns["images"] for part in job.parts(["images"]))
