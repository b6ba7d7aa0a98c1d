"""Joins the rows of concurrent callers into batches without ever waiting for more callers.

While the model computes, the next batch fills; an idle model runs a request at once. There is no timer and no
polling: the end of one batch starts the next. A batcher knows nothing of images, HTTP or onnxruntime: it
takes and returns tuples of arrays with rows on axis 0. It never refuses rows (admission control does that),
skips callers that have gone, and splits calls that are too large for one batch.

All of its state belongs to the event loop; only `_run_batch` runs in the model thread. Where that thread
would have no CPU of its own, short batches run on the event loop itself, which saves switching threads.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from math import inf
from time import monotonic, perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any], ...]
Run = Callable[..., Arrays]
T = TypeVar("T")


class BatchError(RuntimeError):
    """The model failed on the batch that this caller was in. `__cause__` is the model's own error."""


class ModelThread(ThreadPoolExecutor):
    """The one thread that computes for all models. It knows how long its current task has been running."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="model")
        self._since: float | None = None

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        def timed() -> T:
            self._since = monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self._since = None

        return super().submit(timed)

    def busy_for(self) -> float:
        """Seconds since the current task began; 0 if there is none."""
        since = self._since
        return monotonic() - since if since is not None else 0.0


class _Caller:
    """One call: its rows, how many of them are in a batch already, and the results so far."""

    __slots__ = ("arrays", "arrived", "left", "parts", "ran", "result", "rows", "taken", "waited")

    def __init__(self, arrays: Arrays, result: asyncio.Future[Arrays]) -> None:
        self.arrays = arrays
        self.result = result
        self.rows = self.left = len(arrays[0])
        self.taken = 0
        self.parts: list[Arrays] = []  # stays empty if the call fits one batch
        self.arrived = perf_counter()
        self.waited = 0.0  # seconds until its first row was in a batch
        self.ran = 0.0  # seconds in the model thread, including its queue


_Share = tuple[_Caller, slice]  # the rows of a caller that are in a batch


class Batcher:
    """Runs one function of one model in batches of up to `max_rows` rows, one batch at a time.

    `thread` is shared with other batchers: each has at most one batch in the executor's queue, so they take
    turns. Batches that are expected to take less than `inline_seconds` run on the event loop. `observe` is
    called in the caller's own context, with the seconds that a call waited and ran.
    """

    def __init__(
        self,
        run: Run,
        thread: Executor,
        *,
        max_rows: int,
        inline_seconds: float = 0.0,
        observe: Callable[[float, float], None] | None = None,
    ) -> None:
        self._run = run
        self._thread = thread
        self._max_rows = max_rows
        self._inline_seconds = inline_seconds
        self._row_seconds = inf  # of the last batch; not known yet
        self._observe = observe
        self._waiting: deque[_Caller] = deque()
        self._busy = False  # a batch is in flight or about to start

    @property
    def waiting_rows(self) -> int:
        """Rows that are not in a batch yet and whose caller is still waiting."""
        return sum(caller.left for caller in self._waiting if not caller.result.done())

    async def __call__(self, *arrays: NDArray[Any]) -> Arrays:
        """The results for these rows, in the same order. BatchError if the model fails."""
        if not arrays or any(len(array) != len(arrays[0]) for array in arrays) or not len(arrays[0]):
            raise ValueError("a batcher takes arrays of the same number of rows, at least one row each")
        loop = asyncio.get_running_loop()
        caller = _Caller(arrays, loop.create_future())
        self._waiting.append(caller)
        if not self._busy:
            self._busy = True
            # At the end of this iteration of the loop, so that calls of the same iteration share a batch.
            loop.call_soon(self._start)
        results = await caller.result
        if self._observe:
            self._observe(caller.waited, caller.ran)
        return results

    def _start(self) -> None:
        """Starts the next batch, if any rows are waiting."""
        batch = list(self._take())
        self._busy = bool(batch)
        if not batch:
            return
        started = perf_counter()
        loop = asyncio.get_running_loop()
        if sum(rows.stop - rows.start for _, rows in batch) * self._row_seconds < self._inline_seconds:
            results: Arrays | None = None
            failure: BaseException | None = None
            try:
                results = self._run_batch(batch)
            except Exception as error:
                failure = error
            loop.call_soon(self._start)  # after the loop has read what arrived meanwhile
            self._deliver(batch, started, results, failure)
            return
        done: asyncio.Future[Arrays]
        try:
            done = loop.run_in_executor(self._thread, self._run_batch, batch)
        except RuntimeError as error:  # the thread has been shut down
            done = loop.create_future()
            done.set_exception(error)
        done.add_done_callback(lambda done: self._finish(batch, started, done))

    def _take(self) -> Iterator[_Share]:
        """Takes up to `max_rows` rows from the queue. A caller with rows left stays at the front."""
        room = self._max_rows
        while self._waiting and room:
            caller = self._waiting[0]
            if caller.result.done():  # cancelled, or an earlier part of it failed
                self._waiting.popleft()
                continue
            if not caller.taken:
                caller.waited = perf_counter() - caller.arrived
            count = min(room, caller.left)
            rows = slice(caller.taken, caller.taken + count)
            caller.taken += count
            caller.left -= count
            room -= count
            if not caller.left:
                self._waiting.popleft()
            yield caller, rows

    def _run_batch(self, batch: list[_Share]) -> Arrays:
        """Runs in the model thread. Joining belongs here too, as it can copy megabytes."""
        joined = _join(
            [
                caller.arrays
                if rows.stop - rows.start == caller.rows
                else tuple(array[rows] for array in caller.arrays)
                for caller, rows in batch
            ]
        )
        started = perf_counter()
        results = self._run(*joined)
        self._row_seconds = (perf_counter() - started) / len(joined[0])
        if any(len(result) != len(joined[0]) for result in results):
            shapes = [result.shape for result in results]
            raise RuntimeError(f"the model was given {len(joined[0])} rows and returned shapes {shapes}")
        return results

    def _finish(self, batch: list[_Share], started: float, done: asyncio.Future[Arrays]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        results = None if error else done.result()
        if self._inline_seconds:
            self._deliver(batch, started, results, error)  # first: the next batch may run on the event loop
            self._start()
        else:
            self._start()  # first: the model should not idle while results are handed out
            self._deliver(batch, started, results, error)

    def _deliver(
        self, batch: list[_Share], started: float, results: Arrays | None, error: BaseException | None
    ) -> None:
        start = 0
        ran = perf_counter() - started
        for caller, rows in batch:
            stop = start + rows.stop - rows.start
            caller.ran += ran
            if caller.result.done():
                pass  # cancelled while the model computed
            elif results is None:
                # One error for each caller: a shared one would collect the tracebacks of all.
                failure = BatchError(f"the model failed on a batch: {error}")
                failure.__cause__ = error
                caller.result.set_exception(failure)
            else:
                part = tuple([result[start:stop] for result in results])
                if stop - start == caller.rows:
                    caller.result.set_result(part)
                else:
                    caller.parts.append(part)
                    if sum(len(part[0]) for part in caller.parts) == caller.rows:
                        caller.result.set_result(_join(caller.parts))
            start = stop


def _join(parts: list[Arrays]) -> Arrays:
    return (
        parts[0]
        if len(parts) == 1
        else tuple([np.concatenate(column) for column in zip(*parts, strict=True)])
    )
