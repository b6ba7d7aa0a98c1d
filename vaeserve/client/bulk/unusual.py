"""Draws the most unusual images of a scored collection, with what is unusual in colour."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vaeserve.client.bulk.job import Job
from vaeserve.client.bulk.sources import Source, read
from vaeserve.client.client import Client
from vaeserve.client.files import atomic_write
from vaeserve.client.png import png

MOST = 100  # images


def draw(client: Client, job: Job, sheet: Path) -> None:
    """Write a .png of up to 100 images in reading order, the most unusual first."""
    numbers = _most_unusual(job)
    rank = {number: place for place, number in enumerate(numbers)}
    # In the order of the collection, in which a compressed archive can be read.
    files = {rank[number]: source.load() for number, source in _sources(job, sorted(numbers))}
    found = client.score([files[place] for place in range(len(numbers))], seed=job.seed, overlay=True)
    assert found.overlay is not None
    with atomic_write(sheet) as file:
        file.write(png(found.overlay))


def _most_unusual(job: Job) -> list[int]:
    """The numbers of the entries with the smallest p-values, and among equal ones the largest local score."""
    numbers, keys = [], []
    for part in job.parts(("p_value", "elbo", "local")):
        if len(part.entries):
            numbers.append(part.entries)
            first = part.columns.get("p_value", part.columns["elbo"])
            second = -part.columns["local"] if "local" in part.columns else part.columns["elbo"]
            keys.append(np.stack([second, first]))
    order = np.lexsort(np.concatenate(keys, axis=1))
    chosen: list[int] = np.concatenate(numbers)[order[:MOST]].tolist()
    return chosen


def _sources(job: Job, numbers: list[int]) -> Iterator[tuple[int, Source]]:
    wanted = set(numbers)
    entries = (entry for number, entry in enumerate(job.entries(0)) if number in wanted)
    return zip(numbers, read(entries), strict=True)
