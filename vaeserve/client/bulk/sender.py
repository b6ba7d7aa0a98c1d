"""Sends the requests of a bulk job until they succeed, and finds out which files are to blame if not."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from vaeserve.client.bulk.job import Columns, Failure
from vaeserve.client.bulk.sources import Source
from vaeserve.client.bulk.throttle import ConcurrencyLimit
from vaeserve.client.errors import BadRequest, Overloaded, Refused, ServerFault, Unreachable

# Called with the number of the first entry and with the files or latents of it and of those after it. The
# entries are consecutive, because the noise of an entry must not depend on the others of its request.
Inputs = Sequence[bytes] | NDArray[Any]
Call = Callable[[int, Any], Columns]
Draw = Callable[[range], Columns]  # called with the numbers of samples

Rows = list[tuple[list[int], Columns]]  # entries, and a row of each column for each of them
Done = tuple[Rows, list[Failure]]

BYTES = 8 << 20  # of a request; photographs reach it before their number does
TRIES = 3  # of a request that the service answers with 500
LONGEST_WAIT = 8.0  # seconds between two tries, without a Retry-After
FATAL = frozenset({401, 403, 404, 405, 406, 409})  # statuses that no file causes


class Sender:
    """Repeats requests until they succeed, and waits while the service is overloaded.

    It gives up after `patience` seconds without any success.
    """

    def __init__(self, *, concurrency: int, patience: float) -> None:
        self._limit = ConcurrencyLimit(concurrency)
        self._patience = patience
        self._last_success = time.monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End every wait for the service."""
        self._stopped.set()
        self._limit.stop_waiting()

    def samples(self, call: Draw, numbers: range) -> Done:
        """The samples of these numbers. A refusal ends the job: there is no file to blame."""
        return [(list(numbers), self._repeat(partial(call, numbers)))], []

    def files(self, call: Call, sources: Sequence[tuple[int, Source]]) -> Done:
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
                self._send(call, indices, files, rows, failed)
                indices, files, size = [], [], 0
            size += len(content)
            indices.append(index)
            files.append(content)
        if files:
            self._send(call, indices, files, rows, failed)
        return rows, failed

    def latents(self, call: Call, latents: NDArray[Any], numbers: range) -> Done:
        """The results of these rows of latents, and the failures."""
        rows: Rows = []
        failed: list[Failure] = []
        self._send(call, list(numbers), latents[numbers.start : numbers.stop], rows, failed)
        return rows, failed

    def _send(
        self, call: Call, indices: list[int], inputs: Inputs, rows: Rows, failed: list[Failure]
    ) -> None:
        """Send one request. If it is refused, send pieces of it until the entries to blame are known."""
        try:
            rows.append((indices, self._repeat(partial(call, indices[0], inputs))))
        except (BadRequest, ServerFault) as error:
            if error.status in FATAL:
                raise
            if len(indices) == 1:
                failed.append(Failure(indices[0], error.detail))
                return
            before = len(failed)
            for piece in _pieces(error, len(indices)):
                self._send(call, indices[piece], inputs[piece], rows, failed)
            if isinstance(error, ServerFault) and len(failed) - before == len(indices):
                raise  # every entry failed: the service is to blame

    def _repeat(self, call: Callable[[], Columns]) -> Columns:
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
                    self._last_success = time.monotonic()
                    return columns
            if self._stopped.is_set() or time.monotonic() - self._last_success > self._patience:
                raise failure
            wait = min(LONGEST_WAIT, 2 * wait)
            asked = failure.retry_after if isinstance(failure, Refused) else None
            self._limit.overloaded(started, wait if asked is None else asked)


def _pieces(error: Refused, count: int) -> list[slice]:
    """The entry that the refusal points at, and those before and after it; two halves without a pointer."""
    for each in error.errors:
        pointer = str(each.get("pointer")) if isinstance(each, dict) else ""
        match = re.match(r"/(?:images|latents)/(\d+)", pointer)
        if match and (at := int(match[1])) < count:
            around = (slice(0, at), slice(at, at + 1), slice(at + 1, count))
            return [piece for piece in around if piece.start < piece.stop]
    return [slice(0, count // 2), slice(count // 2, count)]
