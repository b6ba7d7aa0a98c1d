"""Answers errors: whatever is raised below, by anyone, becomes application/problem+json.

Under /v2 the shape is the Open Inference Protocol's, `{"error": …}`.
"""

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import trace
from service.core.admission import ClientGone
from service.core.problems import (
    MEDIA_TYPE,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Pointer,
    Problem,
    content,
)

log = logging.getLogger(__name__)

# Enough to see the pattern; a body can have thousands of faults.
MAX_POINTERS = 20
FAILED = "The service failed on this request; its log has the reason under the id in `instance`."


def response(problem: Problem, path: str = "") -> Response:
    """The answer to a request for `path` that failed with this problem."""
    trace.answered_with(problem.slug)
    if path == "/v2" or path.startswith("/v2/"):
        text = f"{problem.detail} (request {trace.request_id()})"
        return Response(orjson.dumps({"error": text}), problem.status, problem.headers, "application/json")
    return Response(content(problem, trace.request_id()), problem.status, problem.headers, MEDIA_TYPE)


async def answer(request: Request, error: Exception) -> Response:
    """Exception handler for what the router and FastAPI raise."""
    return response(from_exception(error, request), request.scope["path"])


def from_exception(error: Exception, request: Request | None = None) -> Problem:
    """The problem that an exception means to the client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        return _from_http(error, request)
    return Internal(FAILED)


def invalid(errors: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Validation errors of FastAPI or pydantic as one problem; each `loc` begins with body, query or path."""
    pointers = [
        Pointer(
            pointer="".join(
                f"/{str(part)[:100].replace('~', '~0').replace('/', '~1')}" for part in error["loc"][1:]
            ),
            location=str(error["loc"][0]),
            detail=error["msg"],
        )
        for error in errors
    ]
    first = pointers[0]
    more = f" (and {len(pointers) - 1} more, see `errors`)" if len(pointers) > 1 else ""
    where = f"{first.location} {first.pointer}".rstrip()
    return InvalidRequest(
        f"{where}: {first.detail}{more}. /docs shows what is expected.", errors=pointers[:MAX_POINTERS]
    )


def _from_http(error: HTTPException, request: Request | None) -> Problem:
    """What Starlette's router and FastAPI raise of their own accord."""
    path = request.url.path if request else "this path"
    match error.status_code:
        case 404:
            return NotFound(f"There is nothing at {path}; /docs shows what there is.")
        case 405:
            allowed = _allowed(request) or (error.headers or {}).get("Allow", "")
            method = request.method if request else "this method"
            return MethodNotAllowed(f"{path} has no {method}; it has {allowed}.", headers={"Allow": allowed})
        case status if status >= 500:
            log.error("unexpected %s: %s", status, error.detail)
            return Internal(FAILED)
        case status:
            return InvalidRequest(
                f"{error.detail or HTTPStatus(status).phrase}. /docs shows what is expected."
            )


def _allowed(request: Request | None) -> str:
    """The methods of all routes at the path; the router knows only those of the first."""
    if request is None:
        return ""
    methods: set[str] = set()
    for route in request.app.routes:
        regex = getattr(route, "path_regex", None)
        if regex is not None and regex.match(request.scope["path"]):
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))


class ProblemMiddleware:
    """Answers whatever the application or other middleware raises as a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def sender(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sender)
        except (ClientDisconnect, ClientGone):
            log.info("the client disconnected before the request was answered")
        except Exception as error:
            problem = from_exception(error)
            if isinstance(problem, Internal):
                log.exception("failed on %s %s", scope["method"], scope["path"])
            if started:
                raise  # half an answer is out: uvicorn closes the connection, so nobody takes it for whole
            await response(problem, scope["path"])(scope, receive, send)
