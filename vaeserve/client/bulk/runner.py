"""Runs what is left of a bulk job: several requests at a time, with the results kept in order as parts."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk import sender
from vaeserve.client.bulk.job import Failure, Job, Part
from vaeserve.client.bulk.sender import Call, Done, Draw, Rows, Sender
from vaeserve.client.bulk.sources import STREAMED, Source, read
from vaeserve.client.errors import ClientError

ROWS = 128  # entries of a request, which the service computes in one batch or two
PART_ROWS, PART_BYTES, PART_SECONDS = 4096, 32 << 20, 5.0  # when results are written to disk

T = TypeVar("T")
Requests = Iterator[Callable[[Sender], Done]]


def files(job: Job, call: Call) -> Requests:
    """The requests for the image files that have no result yet."""
    sources = enumerate(read(job.entries(0)))
    for _ in zip(range(job.done), sources, strict=False):
        pass  # compressed archives must be read up to where the job resumes
    return (partial(Sender.files, call=call, sources=each) for each in _chunks(sources))


def samples(job: Job, call: Draw) -> Requests:
    """The requests for the samples that have not been drawn yet."""
    return (partial(Sender.samples, call=call, numbers=each) for each in _ranges(job))


def latents(job: Job, call: Call, rows: NDArray[Any]) -> Requests:
    """The requests for the rows of latents that have no result yet."""
    return (partial(Sender.latents, call=call, latents=rows, numbers=each) for each in _ranges(job))


def run(
    job: Job, requests: Requests, *, concurrency: int, patience: float, advance: Callable[[int], object]
) -> None:
    """Send the requests, and keep their results as parts, in the order of the entries.

    `advance` is called with the number of entries that each part adds.
    """
    start = job.done
    send = Sender(concurrency=concurrency, patience=patience)
    calls = (partial(request, send) for request in requests)
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for stop, rows, failed in _gathered(prefetch(pool, calls, 2 * concurrency), start):
                job.add(_part(start, stop, rows, failed))
                advance(stop - start)
                start = stop
        finally:
            send.stop()
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, wait only for the requests in flight


def prefetch(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]], most: int) -> Iterator[T]:
    """The results in the order of the calls, computed at most `most` calls ahead."""
    waiting: deque[Future[T]] = deque()
    for call in calls:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(call))
    while waiting:
        yield waiting.popleft().result()


def _ranges(job: Job) -> Iterator[range]:
    return (range(at, min(at + ROWS, job.count)) for at in range(job.done, job.count, ROWS))


def _chunks(sources: Iterable[tuple[int, Source]]) -> Iterator[list[tuple[int, Source]]]:
    """The files of one request each; fewer where their bytes are in memory already."""
    chunk: list[tuple[int, Source]] = []
    held = 0
    for index, source in sources:
        chunk.append((index, source))
        held += source.entry.size if source.entry.offset == STREAMED else 0
        if len(chunk) == ROWS or held >= sender.BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _gathered(results: Iterable[Done], start: int) -> Iterator[tuple[int, Rows, list[Failure]]]:
    """The results of several requests as parts: (the entry after the part, rows, failures).

    If a request fails, the results before it come first, then the error.
    """
    stop, since = start, time.monotonic()
    rows: Rows = []
    failed: list[Failure] = []
    try:
        for more_rows, more_failed in results:
            rows += more_rows
            failed += more_failed
            stop += sum(len(indices) for indices, _ in more_rows) + len(more_failed)
            size = sum(column.nbytes for _, columns in rows for column in columns.values())
            if stop - start >= PART_ROWS or size >= PART_BYTES or time.monotonic() - since >= PART_SECONDS:
                yield stop, rows, failed
                start, rows, failed, since = stop, [], [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        if stop > start:
            yield stop, rows, failed
        raise
    if stop > start:
        yield stop, rows, failed


def _part(start: int, stop: int, rows: Rows, failed: list[Failure]) -> Part:
    """One part, with its rows in the order of the entries."""
    index = np.array([each for indices, _ in rows for each in indices], np.int64)
    order = np.argsort(index)
    names = rows[0][1] if rows else ()
    columns = {name: np.concatenate([columns[name] for _, columns in rows]) for name in names}
    if any(len(column) != len(index) for column in columns.values()):
        raise ClientError(
            "the service answered with more or fewer rows than it was sent; report this to its operator"
        )
    in_order = {name: column[order] for name, column in columns.items()}
    return Part(start, stop, index[order], in_order, sorted(failed))
