"""Writes the images of a bulk job as one file, or as a folder of PNG files."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from vaeserve.client.bulk.job import Job
from vaeserve.client.bulk.tables import member, write_column
from vaeserve.client.errors import ClientError
from vaeserve.client.files import atomic_write
from vaeserve.client.png import png

SUFFIXES = (".png", ".npy", ".npz", "")  # a folder has none
SHEET = 4096  # images of a contact sheet, which is made in memory


def check(output: Path, n: int) -> None:
    """Raise ClientError before the work starts if `n` images cannot become this output."""
    if output.suffix.lower() == ".png" and n > SHEET:
        raise ClientError(f"a contact sheet has at most {SHEET:,} images, not {n:,}; write .npy")
    if output.suffix == "" and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ClientError(f"{output} exists and is not an empty folder; remove it, or choose another -o")


def merge(job: Job, output: Path) -> None:
    """Write the output of a finished job atomically. Entries that failed have no image."""
    if output.suffix == "":
        _folder(job, output)
        return
    with atomic_write(output) as file:
        match output.suffix.lower():
            case ".png":
                file.write(png(np.concatenate(list(job.column("images")))))
            case ".npy":
                write_column(file, job, "images")
            case _:
                _npz(job, file)


def _npz(job: Job, file: IO[bytes]) -> None:
    """images, seed and model, as numpy.savez writes them."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in (("seed", job.seed), ("model", job.model)):
            with member(archive, name) as array:
                np.save(array, np.array(value))
        with member(archive, "images") as array:
            write_column(array, job, "images")


def _folder(job: Job, output: Path) -> None:
    """<row>.png for each image, written in the job's folder and then renamed in one step."""
    draft = job.folder / "images"
    if output.exists() and any(output.iterdir()):
        return  # the last run was killed after the rename: `check` refused such a folder at the start
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    images = (image for images in job.column("images") for image in images)
    for row, image in enumerate(images):
        (draft / f"{row:08d}.png").write_bytes(png(image[None]))
    if output.exists():
        output.rmdir()  # is empty
    os.replace(draft, output)
