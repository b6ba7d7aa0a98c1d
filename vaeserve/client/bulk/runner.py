"""Sends whole collections through the service: streamed, several requests at a time, and resumable.

Results are kept part by part (job.py) and merged into the output at the end (tables.py). The same command
resumes where the last one stopped, however it stopped.
"""

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.job import Columns, Failure, Job, Part
from vaeserve.client.bulk.sources import STREAMED, Source, read
from vaeserve.client.bulk.throttle import ConcurrencyLimit
from vaeserve.client.errors import BadRequest, ClientError, Overloaded, Refused, ServerFault, Unreachable

# The number of the first entry, and the image files or latents of it and those after it → columns with a row
# for each. The entries are consecutive, because the noise of an entry must not depend on the others of its
# request.
Files = Sequence[bytes] | NDArray[Any]
Call = Callable[[int, Any], Columns]
Draw = Callable[[range], Columns]  # numbers of samples → columns with a row for each

ROWS = 128  # images of a request, which the service computes in one batch or two
BYTES = 8 << 20  # of a request; photographs make it smaller
PART_ROWS, PART_BYTES, PART_SECONDS = 4096, 32 << 20, 5.0  # when results are written to disk
TRIES = 3  # of a request on which the service itself fails
LONGEST_WAIT = 8.0  # seconds between two tries, without a Retry-After
# Statuses that no file is to blame for.
FATAL = frozenset({401, 403, 404, 405, 406, 409})

T = TypeVar("T")
Rows = list[tuple[list[int], Columns]]  # which entries, and their rows
Done = tuple[Rows, list[Failure]]
Advance = Callable[[int], object]  # called with each number of entries that has been written to disk


class Conductor:
    """Repeats requests until they succeed, and waits while the service is overloaded.

    It gives up after `patience` seconds without any success.
    """

    def __init__(self, *, concurrency: int, patience: float) -> None:
        self.concurrency = concurrency
        self._limit = ConcurrencyLimit(concurrency)
        self._patience = patience
        self._progress = time.monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End every wait for the service."""
        self._stopped.set()
        self._limit.stop_waiting()

    def draw(self, call: Draw, samples: range) -> Done:
        """The samples of these numbers. A refusal ends the job: there is no file to blame."""
        return [(list(samples), self._patiently(partial(call, samples)))], []

    def rows(self, call: Call, sources: Sequence[tuple[int, Source]]) -> Done:
        """The results of these files, and the failures. The files are read here, BYTES at a time."""
        rows: Rows = []
        failed: list[Failure] = []
        indices: list[int] = []
        files: list[bytes] = []
        size = 0
        for index, source in sources:
            try:
                content = source.load()
            except OSError as error:
                failed.append(Failure(index, str(error)))
                continue
            if files and (size + len(content) > BYTES or index != indices[-1] + 1):
                self._ask(call, indices, files, rows, failed)
                indices, files, size = [], [], 0
            size += len(content)
            indices.append(index)
            files.append(content)
        if files:
            self._ask(call, indices, files, rows, failed)
        return rows, failed

    def latents(self, call: Call, latents: NDArray[Any], chunk: range) -> Done:
        """The results of these rows of latents, and the failures."""
        rows: Rows = []
        failed: list[Failure] = []
        self._ask(call, list(chunk), latents[chunk.start : chunk.stop], rows, failed)
        return rows, failed

    def _ask(self, call: Call, indices: list[int], files: Files, rows: Rows, failed: list[Failure]) -> None:
        """Send one request. If it is refused, send pieces until it is known which files are to blame."""
        try:
            rows.append((indices, self._patiently(partial(call, indices[0], files))))
        except (BadRequest, ServerFault) as error:
            if error.status in FATAL:
                raise
            if len(files) == 1:
                failed.append(Failure(indices[0], error.detail))
                return
            before = len(failed)
            for piece in _pieces(error, len(files)):
                self._ask(call, indices[piece], files[piece], rows, failed)
            if isinstance(error, ServerFault) and len(failed) - before == len(files):
                raise  # the service is to blame

    def _patiently(self, call: Callable[[], Columns]) -> Columns:
        wait, tries = 0.25, 0
        while True:
            with self._limit:
                started = time.monotonic()
                try:
                    columns = call()
                except ServerFault as error:
                    tries += 1
                    if error.status == 500 and tries == TRIES:
                        raise
                    failure: Refused | Unreachable = error
                except (Overloaded, Unreachable) as error:
                    failure = error
                else:
                    self._limit.succeeded()
                    self._progress = time.monotonic()
                    return columns
            if self._stopped.is_set() or time.monotonic() - self._progress > self._patience:
                raise failure
            wait = min(LONGEST_WAIT, 2 * wait)
            asked = failure.retry_after if isinstance(failure, Refused) else None
            self._limit.overloaded(started, wait if asked is None else asked)


def run(job: Job, call: Call, *, concurrency: int, patience: float, advance: Advance) -> None:
    """Do what is left of a job on image files."""
    conductor = Conductor(concurrency=concurrency, patience=patience)
    sources = enumerate(read(job.entries(0)))
    for _ in zip(range(job.done), sources, strict=False):
        pass  # compressed archives must be read up to where the job resumes
    _keep(job, conductor, (partial(conductor.rows, call, each) for each in _chunks(sources)), advance)


def draw(job: Job, call: Draw, *, concurrency: int, patience: float, advance: Advance) -> None:
    """Draw the samples that are left of a job."""
    conductor = Conductor(concurrency=concurrency, patience=patience)
    _keep(job, conductor, (partial(conductor.draw, call, each) for each in _ranges(job)), advance)


def decode(
    job: Job, call: Call, latents: NDArray[Any], *, concurrency: int, patience: float, advance: Advance
) -> None:
    """Decode the rows of latents that are left of a job."""
    conductor = Conductor(concurrency=concurrency, patience=patience)
    tasks = (partial(conductor.latents, call, latents, each) for each in _ranges(job))
    _keep(job, conductor, tasks, advance)


def prefetch(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], most: int) -> Iterator[T]:
    """The results in the order of the jobs, at most `most` of them ahead of the caller."""
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(job))
    while waiting:
        yield waiting.popleft().result()


def _ranges(job: Job) -> Iterator[range]:
    return (range(at, min(at + ROWS, job.count)) for at in range(job.done, job.count, ROWS))


def _keep(job: Job, conductor: Conductor, chunks: Iterable[Callable[[], Done]], advance: Advance) -> None:
    """Make the requests, and keep their results as parts, in the order of the entries."""
    start = job.done
    with ThreadPoolExecutor(conductor.concurrency) as pool:
        try:
            for stop, rows, failed in _gathered(prefetch(pool, chunks, 2 * conductor.concurrency), start):
                job.add(_part(start, stop, rows, failed))
                advance(stop - start)
                start = stop
        finally:
            conductor.stop()
            pool.shutdown(cancel_futures=True)  # after Ctrl-C only what is in flight is waited for


def _gathered(results: Iterable[Done], start: int) -> Iterator[tuple[int, Rows, list[Failure]]]:
    """Joins the results of requests to parts: (the entry after it, rows, failures).

    After an error, the results before it come first, then the error.
    """
    stop, since = start, time.monotonic()
    rows: Rows = []
    failed: list[Failure] = []
    try:
        for more, others in results:
            rows += more
            failed += others
            stop += sum(len(indices) for indices, _ in more) + len(others)
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


def _chunks(sources: Iterable[tuple[int, Source]]) -> Iterator[list[tuple[int, Source]]]:
    """The files of one request each; fewer where their bytes are in memory already."""
    chunk: list[tuple[int, Source]] = []
    held = 0
    for index, source in sources:
        chunk.append((index, source))
        held += source.entry.size if source.entry.offset == STREAMED else 0
        if len(chunk) == ROWS or held >= BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _part(start: int, stop: int, rows: Rows, failed: list[Failure]) -> Part:
    """One part, in the order of the entries."""
    index = np.array([each for indices, _ in rows for each in indices], np.int64)
    order = np.argsort(index)
    columns = {
        name: np.concatenate([columns[name] for _, columns in rows])[order]
        for name in (rows[0][1] if rows else ())
    }
    if len(index) + len(failed) != stop - start:
        raise ClientError(
            "the service answered with another number of rows than it was sent; report this to its operator"
        )
    return Part(start, stop, index[order], columns, sorted(failed))


def _pieces(error: Refused, count: int) -> list[slice]:
    """The file that the refusal points at, and those before and after it; without a pointer, two halves."""
    for each in error.errors:
        match = (
            re.match(r"/(?:images|latents)/(\d+)", str(each.get("pointer")))
            if isinstance(each, dict)
            else None
        )
        if match and (at := int(match[1])) < count:
            around = (slice(0, at), slice(at, at + 1), slice(at + 1, count))
            return [piece for piece in around if piece.start < piece.stop]
    return [slice(0, count // 2), slice(count // 2, count)]
