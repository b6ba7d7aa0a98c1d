"""Joins the rows of concurrent callers into batches, without ever waiting for company.

While the model computes, the next batch fills by itself; when it is idle, a request goes at once. There is no
timer and no polling: the end of one batch starts the next. A batcher knows nothing of images, HTTP or
onnxruntime: a tuple of arrays in, a tuple of arrays out, rows on axis 0. It never refuses (that is work
for the door), counts rows and not callers, skips callers that went away, and splits what is too large.

All of its state belongs to the event loop; only `_run_batch` runs in the model thread. Where that thread
would have no CPU of its own, short batches run on the event loop itself, which saves handing them over.
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
    """The model failed on the batch that this caller was in; `__cause__` is the model's own error."""


class ModelThread(ThreadPoolExecutor):
    """The one thread that computes for all models; it tells for how long it has been at the same thing."""

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
        """Seconds since what it is doing began; 0 when it has nothing to do."""
        since = self._since
        return monotonic() - since if since is not None else 0.0


class _Caller:
    """One request: its rows, how many of them are in a batch already, and what has come back."""

    __slots__ = ("answer", "arrays", "arrived", "left", "parts", "ran", "rows", "taken", "waited")

    def __init__(self, arrays: Arrays, answer: asyncio.Future[Arrays]) -> None:
        self.arrays = arrays
        self.answer = answer
        self.rows = self.left = len(arrays[0])
        self.taken = 0
        self.parts: list[Arrays] = []  # empty for as long as one may be all
        self.arrived = perf_counter()
        self.waited = 0.0  # seconds until its first row was taken
        self.ran = 0.0  # seconds in the model thread, its turn included


_Share = tuple[_Caller, slice]  # which rows of which caller are in a batch


class Batcher:
    """One function of one model. At most one batch is in flight; `thread` is shared with other batchers.

    `here`: batches that are likely to take fewer seconds than this run on the event loop.

    The executor's own queue is the turn-taking: each batcher has at most one batch in it.
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
        self._row_seconds = inf  # how long a row took lately; not known yet
        self._observe = observe  # (seconds waited, seconds run), called in the caller's own context
        self._waiting: deque[_Caller] = deque()
        self._busy = False  # a batch is in flight, or one is about to be

    @property
    def waiting_rows(self) -> int:
        """Rows that are in no batch yet and whose caller is still there."""
        return sum(caller.left for caller in self._waiting if not caller.answer.done())

    async def __call__(self, *arrays: NDArray[Any]) -> Arrays:
        """The model's answer for these rows, in their order."""
        if not arrays or any(len(array) != len(arrays[0]) for array in arrays) or not len(arrays[0]):
            raise ValueError("a batcher takes arrays of one and the same number of rows, at least one row")
        loop = asyncio.get_running_loop()
        caller = _Caller(arrays, loop.create_future())
        self._waiting.append(caller)
        if not self._busy:
            self._busy = True
            # At the end of this turn of the loop, so that callers who came in the same turn share a batch.
            loop.call_soon(self._start)
        answer = await caller.answer
        if self._observe:
            self._observe(caller.waited, caller.ran)
        return answer

    def _start(self) -> None:
        """Sends the next batch to the model thread, if anybody is waiting."""
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
            loop.call_soon(self._start)  # once it has been seen who came meanwhile
            self._answer(batch, started, results, failure)
            return
        done: asyncio.Future[Arrays]
        try:
            done = loop.run_in_executor(self._thread, self._run_batch, batch)
        except RuntimeError as error:  # the thread has been shut down
            done = loop.create_future()
            done.set_exception(error)
        done.add_done_callback(lambda done: self._finish(batch, started, done))

    def _take(self) -> Iterator[_Share]:
        """Up to `max_rows` rows from the front of the queue; a caller who wants more stays at the front."""
        room = self._max_rows
        while self._waiting and room:
            caller = self._waiting[0]
            if caller.answer.done():  # went away, or an earlier part of it failed
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
        """In the model thread: joining belongs here too, it can be megabytes."""
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
            raise RuntimeError(f"the model was given {len(joined[0])} rows and answered with shapes {shapes}")
        return results

    def _finish(self, batch: list[_Share], started: float, done: asyncio.Future[Arrays]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        results = None if error else done.result()
        if self._inline_seconds:
            self._answer(batch, started, results, error)  # first of all: the next batch may run right here
            self._start()
        else:
            self._start()  # first of all: the model should not idle while answers are handed out
            self._answer(batch, started, results, error)

    def _answer(
        self, batch: list[_Share], started: float, results: Arrays | None, error: BaseException | None
    ) -> None:
        start = 0
        ran = perf_counter() - started
        for caller, rows in batch:
            stop = start + rows.stop - rows.start
            caller.ran += ran
            if caller.answer.done():
                pass  # went away while the model computed
            elif results is None:
                # One error for each caller: a shared one would gather everybody's traceback.
                failure = BatchError(f"the model failed on a batch: {error}")
                failure.__cause__ = error
                caller.answer.set_exception(failure)
            else:
                part = tuple([result[start:stop] for result in results])
                if stop - start == caller.rows:
                    caller.answer.set_result(part)
                else:
                    caller.parts.append(part)
                    if sum(len(part[0]) for part in caller.parts) == caller.rows:
                        caller.answer.set_result(_join(caller.parts))
            start = stop


def _join(parts: list[Arrays]) -> Arrays:
    return (
        parts[0]
        if len(parts) == 1
        else tuple([np.concatenate(column) for column in zip(*parts, strict=True)])
    )
