"""Traces every request: its id, Server-Timing, metrics, and one line in the access log.

Images, latents and query strings are never logged.
"""

import logging
import re
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.metrics import Metrics
from service.core.trace import Trace, current, new_id
from service.http.headers import header

log = logging.getLogger("service.access")

# Ids from outside go into headers and log lines unescaped.
SAFE_ID = re.compile(r"[A-Za-z0-9._~:@/+=-]{1,128}")


class TracingMiddleware:
    """Gives each request an id and each answer X-Request-ID and Server-Timing. The outermost middleware.

    It also counts and logs the request, under the path of the route that the router left in the scope.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: bool = True) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header(scope, b"x-request-id")
        trace = Trace(given if given and SAFE_ID.fullmatch(given) else new_id())
        started = perf_counter()
        status = 499  # stays if the client disconnects before there is an answer

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

        token = current.set(trace)
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
            current.reset(token)


def _log(**fields: object) -> None:
    """Logs one line. log.info() would look up the calling line of code, which takes longer than the rest."""
    if log.isEnabledFor(logging.INFO):
        text = "%(method)s %(path)s %(status)d %(milliseconds).1f ms"
        log.handle(logging.LogRecord(log.name, logging.INFO, __file__, 0, text, (fields,), None))


def _printable(path: str) -> str:
    """The path, escaped if it could forge a log line."""
    return path if path.isprintable() else ascii(path)
