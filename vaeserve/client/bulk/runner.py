"""Whole collections through the service: streamed, several requests at a time, and resumable.

A job's results are kept part by part (job.py) and merged into the output at the end
(tables.py); the same command again goes on where the last one stopped, however it stopped.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from vaeserve.client.bulk.job import Columns, Failure, Job, Part
from vaeserve.client.bulk.prefetch import ahead
from vaeserve.client.bulk.sources import STREAMED, Source, read
from vaeserve.client.bulk.throttle import Pace
from vaeserve.client.errors import BadRequest, ClientError, Overloaded, Refused, ServerFault, Unreachable

# Image files, and the number of the entry that the first of them is → columns with a row for each. They are
# neighbours among the entries: what is drawn for an entry must not depend on who else is in a request.
Call = Callable[[int, Sequence[bytes]], Columns]
Draw = Callable[[range], Columns]  # numbers of samples → columns with a row for each

ROWS = 128  # images of a request: as many as the service likes in one batch or two
BYTES = 8 << 20  # of a request; photographs make it smaller
PART_ROWS, PART_BYTES, PART_SECONDS = 4096, 32 << 20, 5.0  # when results are put on the disk
TRIES = 3  # of a request on which the service itself fails
LONGEST_WAIT = 8.0  # seconds between two tries, if the service names no time
# About these the files can do nothing.
FATAL = frozenset({401, 403, 404, 405, 406, 409})

Rows = list[tuple[list[int], Columns]]  # which entries, and their rows
Done = tuple[Rows, list[Failure]]
Advance = Callable[[int], object]  # is told of each number of entries that is on the disk


class Conductor:
    """Makes requests until they succeed: waits when the service is full, and gives up after `patience`
    seconds in which nothing succeeded at all."""

    def __init__(self, *, concurrency: int, patience: float) -> None:
        self.concurrency = concurrency
        self._pace = Pace(concurrency)
        self._patience = patience
        self._progress = time.monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Whoever waits for the service stops waiting."""
        self._stopped.set()
        self._pace.stop_waiting()

    def draw(self, call: Draw, samples: range) -> Done:
        """These samples. There is no file that could be to blame: whatever is refused ends the job."""
        return [(list(samples), self._patiently(partial(call, samples)))], []

    def rows(self, call: Call, sources: Sequence[tuple[int, Source]]) -> Done:
        """The results for these files, and those that have none. Here they are read, BYTES at a time."""
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

    def _ask(
        self, call: Call, indices: list[int], files: list[bytes], rows: Rows, failed: list[Failure]
    ) -> None:
        """One request; if it is refused, in pieces until it is known which files are to blame."""
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
                raise  # not the files are to blame

    def _patiently(self, call: Callable[[], Columns]) -> Columns:
        wait, tries = 0.25, 0
        while True:
            with self._pace:
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
                    self._pace.went_well()
                    self._progress = time.monotonic()
                    return columns
            if self._stopped.is_set() or time.monotonic() - self._progress > self._patience:
                raise failure
            wait = min(LONGEST_WAIT, 2 * wait)
            asked = failure.retry_after if isinstance(failure, Refused) else None
            self._pace.overloaded(started, wait if asked is None else asked)


def run(job: Job, call: Call, *, concurrency: int, patience: float, advance: Advance) -> None:
    """Do what is left of a job on images."""
    conductor = Conductor(concurrency=concurrency, patience=patience)
    sources = enumerate(read(job.entries(0)))
    for _ in zip(range(job.done), sources, strict=False):
        pass  # compressed archives are read through to where it goes on
    _keep(job, conductor, (partial(conductor.rows, call, each) for each in _chunks(sources)), advance)


def draw(job: Job, call: Draw, *, concurrency: int, patience: float, advance: Advance) -> None:
    """Draw the samples that a job has not yet."""
    conductor = Conductor(concurrency=concurrency, patience=patience)
    chunks = (range(at, min(at + ROWS, job.count)) for at in range(job.done, job.count, ROWS))
    _keep(job, conductor, (partial(conductor.draw, call, each) for each in chunks), advance)


def _keep(job: Job, conductor: Conductor, chunks: Iterable[Callable[[], Done]], advance: Advance) -> None:
    """Make the requests, and keep what they give as parts, in the order of the entries."""
    start = job.done
    with ThreadPoolExecutor(conductor.concurrency) as pool:
        try:
            for stop, rows, failed in _gathered(ahead(pool, chunks, 2 * conductor.concurrency), start):
                job.add(_part(start, stop, rows, failed))
                advance(stop - start)
                start = stop
        finally:
            conductor.stop()
            pool.shutdown(cancel_futures=True)  # after Ctrl-C only what is in flight is waited for


def _gathered(results: Iterable[Done], start: int) -> Iterator[tuple[int, Rows, list[Failure]]]:
    """Results of requests joined to parts: (the entry after it, rows, failures).

    What was there before an error comes first, then the error.
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
    """As many files as one request has, or fewer if their bytes are in memory already."""
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
    """Everything in the order of the entries."""
    index = np.array([each for indices, _ in rows for each in indices], np.int64)
    order = np.argsort(index)
    columns = {
        name: np.concatenate([columns[name] for _, columns in rows])[order]
        for name in (rows[0][1] if rows else ())
    }
    if len(index) + len(failed) != stop - start:
        raise ClientError("the service answered with another number of rows than it was sent images")
    return Part(start, stop, index[order], columns, sorted(failed))


def _pieces(error: Refused, count: int) -> list[slice]:
    """The file that the refusal points at alone, and what stands around it; otherwise two halves."""
    for each in error.errors:
        match = re.match(r"/images/(\d+)", str(each.get("pointer"))) if isinstance(each, dict) else None
        if match and (at := int(match[1])) < count:
            around = (slice(0, at), slice(at, at + 1), slice(at + 1, count))
            return [piece for piece in around if piece.start < piece.stop]
    return [slice(0, count // 2), slice(count // 2, count)]
