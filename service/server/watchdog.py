"""Ends the process when its event loop hangs: it would answer nothing any more, not even /healthz.

A batch that hangs in the model thread makes /healthz answer 503. A batch that hangs on the event loop, where
short batches run, can be detected only from another thread, and nothing can interrupt it. The process then
exits at once with a status of its own, so that its supervisor starts another.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

STUCK = 4  # exit status; uvicorn's status for a failed start is 3
INTERVAL = 1.0  # seconds between two checks of the loop, which beats ten times in a second

log = logging.getLogger(__name__)


@contextmanager
def watching(beats: Callable[[], int], patience: float) -> Iterator[None]:
    """End the process if the event loop of this thread hangs inside the block.

    `beats` is a count that the loop raises. The loop hangs when the count has not grown for `patience`
    seconds and one interval.
    """
    over = threading.Event()
    arguments = (beats, patience, over, threading.get_ident())
    threading.Thread(target=_watch, args=arguments, daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        over.set()


def _watch(beats: Callable[[], int], patience: float, over: threading.Event, thread: int) -> None:
    seen, silent, checked = beats(), 0.0, monotonic()
    while not over.wait(INTERVAL):
        now, count = monotonic(), beats()
        # If the whole process was stopped or got no CPU, so was this thread: count at most two intervals.
        silent = 0.0 if count != seen else silent + min(now - checked, 2 * INTERVAL)
        seen, checked = count, now
        if silent > patience:
            where = "".join(traceback.format_stack(sys._current_frames().get(thread)))
            log.error(
                "the event loop has hung for %.0f s; this process exits; the loop is at\n%s", silent, where
            )
            os._exit(STUCK)
