"""Asks a run to save and stop: after a signal, or when its time is over. `--resume` continues it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requests(seconds: float | None = None) -> Iterator[Callable[[], bool]]:
    """A function that says whether to stop: after SIGINT or SIGTERM, or `seconds` from now.

    A second signal has its usual effect.
    """
    stop = threading.Event()
    deadline = None if seconds is None else time.monotonic() + seconds

    def due() -> bool:
        return stop.is_set() or (deadline is not None and time.monotonic() >= deadline)

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals there only
        yield due
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield due
    finally:
        restore()
