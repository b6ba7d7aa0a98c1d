"""Who asked, and how long each step took: request ids, Server-Timing, a line in the log.

Images, latents and query strings are never logged.
"""

import logging
import re
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.headers import header

if TYPE_CHECKING:
    from service.core.metrics import Metrics  # which a supervisor, who only logs, can do without

log = logging.getLogger("service.access")

# What may come from outside and go into headers and log lines as it is.
SAFE_ID = re.compile(r"[A-Za-z0-9._~:@/+=-]{1,128}")


@dataclass
class Trace:
    """One request: its id, the seconds its steps have taken, and what was wrong with it."""

    id: str
    problem: str | None = None  # the slug
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def server_timing(self) -> str:
        return ", ".join(f"{step};dur={seconds * 1e3:.2f}" for step, seconds in self.seconds.items())


# Ids are counted from a random beginning, which each process makes when it needs its first: as unique as
# random ones, and a tenth of the work.
_ids: Iterator[int] | None = None


def new_id() -> str:
    """16 hexadecimal digits that no other request has."""
    global _ids
    if _ids is None:
        _ids = count(secrets.randbits(63))
    return f"{next(_ids):016x}"


_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


def request_id() -> str:
    """The id of the request that is being answered, `-` outside of one."""
    trace = _trace.get()
    return trace.id if trace else "-"


def add(step: str, seconds: float) -> None:
    """Count `seconds` for a step of the current request."""
    if trace := _trace.get():
        trace.add(step, seconds)


def answered_with(problem: str) -> None:
    """Remember the slug of the problem that the current request is answered with."""
    if trace := _trace.get():
        trace.problem = problem


def seconds(step: str) -> float:
    """How long a step of the current request has taken so far."""
    trace = _trace.get()
    return trace.seconds.get(step, 0.0) if trace else 0.0


class timed:
    """Context: count the time inside for a step of the current request."""

    __slots__ = ("started", "step")

    def __init__(self, step: str) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.started = perf_counter()

    def __exit__(self, *_: object) -> None:
        add(self.step, perf_counter() - self.started)


class RequestTrace:
    """Middleware, outermost: gives each request its id, and each answer X-Request-ID and Server-Timing.

    And counts it, under the path of the route that it found: routers leave that in the scope.
    """

    def __init__(self, app: ASGIApp, *, metrics: "Metrics", access_log: bool = True) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header(scope, b"x-request-id")
        trace = Trace(given if given and SAFE_ID.fullmatch(given) else new_id())
        started = perf_counter()
        status = 499  # stays when the client went away before there was an answer

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                trace.add("total", perf_counter() - started)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", trace.id.encode("ascii")),
                    (b"server-timing", trace.server_timing().encode("ascii")),
                ]
            await send(message)

        token = _trace.set(trace)
        try:
            await self.app(scope, receive, sender)
        finally:
            route = getattr(scope.get("route"), "path", None)
            self.metrics.answered(route, scope["method"], status, trace.seconds, trace.problem)
            if self.access_log:
                _log(
                    method=scope["method"],
                    path=_printable(scope["path"]),
                    status=status,
                    milliseconds=(perf_counter() - started) * 1e3,
                    problem=trace.problem,
                )
            _trace.reset(token)


def _log(**fields: object) -> None:
    """One line; log.info() would search for the line of code that it comes from, which takes longer."""
    if log.isEnabledFor(logging.INFO):
        text = "%(method)s %(path)s %(status)d %(milliseconds).1f ms"
        log.handle(logging.LogRecord(log.name, logging.INFO, __file__, 0, text, (fields,), None))


def _printable(path: str) -> str:
    """The path, unable to forge a line of the log."""
    return path if path.isprintable() else ascii(path)
