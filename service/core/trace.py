"""What is recorded of the current request: its id, the seconds of each step, the problem it ended with."""

import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter


@dataclass
class Trace:
    """One request: its id, the seconds of each step, and the problem it was answered with."""

    id: str
    problem: str | None = None  # its slug
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def server_timing(self) -> str:
        """The value of the header Server-Timing, in milliseconds."""
        return ", ".join(f"{step};dur={seconds * 1e3:.2f}" for step, seconds in self.seconds.items())


# Ids count up from a random number, which each process draws when it needs its first id: as unique as random
# ids, at a tenth of the cost.
_ids: Iterator[int] | None = None


def new_id() -> str:
    """A unique id of 16 hexadecimal digits."""
    global _ids
    if _ids is None:
        _ids = count(secrets.randbits(63))
    return f"{next(_ids):016x}"


current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def request_id() -> str:
    """The id of the current request; `-` outside of one."""
    trace = current.get()
    return trace.id if trace else "-"


def add(step: str, seconds: float) -> None:
    """Add `seconds` to a step of the current request."""
    if trace := current.get():
        trace.add(step, seconds)


def answered_with(problem: str) -> None:
    """Record the slug of the problem that the current request is answered with."""
    if trace := current.get():
        trace.problem = problem


def seconds(step: str) -> float:
    """The seconds that a step of the current request has taken so far."""
    trace = current.get()
    return trace.seconds.get(step, 0.0) if trace else 0.0


class timed:
    """Context manager that adds the time spent inside to a step of the current request."""

    __slots__ = ("started", "step")

    def __init__(self, step: str) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.started = perf_counter()

    def __exit__(self, *_: object) -> None:
        add(self.step, perf_counter() - self.started)
