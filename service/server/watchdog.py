"""Ends the process when its event loop no longer turns: then nothing is answered, not even /healthz.

A batch that hangs in the model thread turns /healthz red; one that hangs on the loop itself, where short ones
run, can be seen only from another thread. Nobody can stop it either: what is left is to end, at once and with
a status of its own, and whoever started the process starts another.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

STUCK = 4  # exit status, beside uvicorn's 3 for what could not start
LOOK = 1.0  # seconds between two looks at the loop, which beats ten times in them

log = logging.getLogger(__name__)


@contextmanager
def watching(beats: Callable[[], int], patience: float) -> Iterator[None]:
    """Meanwhile, the process ends when `beats`, a count that this thread's event loop raises, has not grown
    for `patience` seconds (and one look)."""
    over = threading.Event()
    arguments = (beats, patience, over, threading.get_ident())
    threading.Thread(target=_watch, args=arguments, daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        over.set()


def _watch(beats: Callable[[], int], patience: float, over: threading.Event, thread: int) -> None:
    seen, silent, looked = beats(), 0.0, monotonic()
    while not over.wait(LOOK):
        now, heard = monotonic(), beats()
        # Where the whole process was stopped, or had no CPU, the loop is no more to blame than this thread.
        silent = 0.0 if heard != seen else silent + min(now - looked, 2 * LOOK)
        seen, looked = heard, now
        if silent > patience:
            where = "".join(traceback.format_stack(sys._current_frames().get(thread)))
            log.error("the event loop has hung for %.0f s, this process ends; it is at\n%s", silent, where)
            os._exit(STUCK)
