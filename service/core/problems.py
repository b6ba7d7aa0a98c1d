"""Every way in which a request can fail, and the one shape in which it is told (RFC 9457).

Problem                           raised anywhere, answered as application/problem+json
├── InvalidRequest            422 a field, a parameter or the syntax of the body
│   ├── BadImage              422 bytes that are no image we can read
│   └── WrongShape            422 arrays of another size or type than the model's
├── NotFound                  404 no such path
│   └── UnknownModel          404 no model of that name is loaded
├── MethodNotAllowed          405 the path has other methods, see Allow
├── NotAcceptable             406 none of the media types in Accept can be made
├── SlowRequest               408 the body does not come in time
├── WrongModel                409 the version is not loaded, or two places name different models
├── NoPrior                   409 the model has no prior to sample from
├── TooLarge                  413 body, pixels or count
├── UnsupportedMediaType      415 a body of a type that cannot be read
├── Unauthorized              401 no valid API key
├── Overloaded                429 try again after Retry-After
├── NotReady                  503 still loading; try again after Retry-After
├── Draining                  503 stopping; another replica will answer
├── Timeout                   504 the deadline passed
└── Internal                  500 our fault: no details, only the id under which the log has them

Each class carries its status, slug and title, so that no route says a number.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import trace as telemetry

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Pointer(BaseModel):
    """One thing that is wrong, and where."""

    pointer: str = Field(description="JSON pointer to the field", examples=["/images/0"])
    location: str = Field(description="`body`, `query` or `path`", examples=["body"])
    detail: str = Field(examples=["Field required"])


class ProblemDetails(BaseModel):
    """The body of every answer from 400 on (RFC 9457)."""

    type: str = Field(description="a page about this kind of problem", examples=["/problems/invalid-request"])
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(description="what is wrong here, and what to do")
    instance: str = Field(description="the request's id, as in X-Request-ID and in the log")
    errors: list[Pointer] = Field(default=[], description="where the request is wrong; only with 422")


class Problem(Exception):
    """Answers the request with `detail`: one or two sentences that say what is wrong and what to do."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None  # seconds

    def __init__(
        self, detail: str, *, errors: Sequence[Pointer] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        if self.retry_after is not None:
            self.headers.setdefault("Retry-After", str(self.retry_after))


class InvalidRequest(Problem):
    """A field, a query parameter or the body's syntax is not as documented; `errors` points at each place."""

    status, slug, title = 422, "invalid-request", "The request is not valid"


class BadImage(InvalidRequest):
    """The bytes are no image that can be read: PNG, JPEG, WebP, GIF and BMP can."""

    slug, title = "bad-image", "The image cannot be read"


class WrongShape(InvalidRequest):
    """An array has another shape or type than the model's; arrays are never resized, image files are."""

    slug, title = "wrong-shape", "The array has the wrong shape or type"


class NotFound(Problem):
    """There is nothing at this path; /docs shows what there is."""

    status, slug, title = 404, "not-found", "There is nothing here"


class UnknownModel(NotFound):
    """No model of this name is loaded; GET /models lists those that are."""

    slug, title = "unknown-model", "No such model"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method; the Allow header lists the methods it has."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(Problem):
    """None of the media types in the Accept header can be made here; the detail lists those that can."""

    status, slug, title = 406, "not-acceptable", "Not acceptable"


class SlowRequest(Problem):
    """The body did not arrive in time; a connection that is only held open costs others theirs."""

    status, slug, title = 408, "slow-request", "The request came too slowly"


class WrongModel(Problem):
    """The version asked for is not loaded, two places name different models, or the model lacks something.

    Latents of one model mean nothing to another, so the service never takes the nearest one instead. What
    a model may lack, because it was published without, is a likelihood, a calibration, or its KL.
    """

    status, slug, title = 409, "wrong-model", "Not this model"


class NoPrior(Problem):
    """The model was published without a prior, so there is nothing to sample from. Publish a version with a
    prior, or send latents of your own to /decode."""

    status, slug, title = 409, "no-prior", "No prior"


class TooLarge(Problem):
    """The body, an image or the number of images is over a limit; GET /models/{name} shows the limits."""

    status, slug, title = 413, "too-large", "Too large"


class UnsupportedMediaType(Problem):
    """The body's Content-Type is missing or not one that this route reads; the detail lists those."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class Unauthorized(Problem):
    """The request needs an API key: `Authorization: Bearer <key>`."""

    status, slug, title = 401, "unauthorized", "Unauthorized"


class Overloaded(Problem):
    """More work is waiting than can be done in time; try again after Retry-After seconds."""

    status, slug, title, retry_after = 429, "overloaded", "Overloaded", 1


class NotReady(Problem):
    """The service is starting, or has no model to serve; try again after Retry-After seconds."""

    status, slug, title, retry_after = 503, "not-ready", "Not ready", 1


class Draining(Problem):
    """The service is stopping; another replica will answer."""

    status, slug, title, retry_after = 503, "draining", "Stopping", 1


class Timeout(Problem):
    """The deadline passed before the answer was there."""

    status, slug, title = 504, "timeout", "Out of time"


class Internal(Problem):
    """A fault of the service. Its log has the reason under the request's id."""


def kinds(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Every kind of problem that can be answered."""
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


def content(problem: Problem, request_id: str, *, status: int | None = None) -> bytes:
    """The body of the answer."""
    fields: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": status or problem.status,
        "detail": problem.detail,
        "instance": request_id,
    }
    if problem.errors:
        fields["errors"] = [error.model_dump() for error in problem.errors]
    return orjson.dumps(fields)


def response(problem: Problem, path: str = "") -> Response:
    """The problem as an answer; under /v2 as the Open Inference Protocol has it."""
    telemetry.answered_with(problem.slug)
    if path == "/v2" or path.startswith("/v2/"):
        text = f"{problem.detail} (request {telemetry.request_id()})"
        return Response(orjson.dumps({"error": text}), problem.status, problem.headers, "application/json")
    body = content(problem, telemetry.request_id())
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


async def answer(request: Request, error: Exception) -> Response:
    """Exception handler for what the router and FastAPI raise; the same shape as everything else."""
    return response(from_exception(error, request), request.scope["path"])


def from_exception(error: Exception, request: Request | None = None) -> Problem:
    """Whatever was raised, as the problem that it means to the client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        return _from_http(error, request)
    return Internal("The service failed on this request; its log has the reason under the id in `instance`.")


def invalid(errors: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """FastAPI's and pydantic's errors (`loc` begins with body, query or path) as one problem."""
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
    # 20 are enough to see the pattern; a body can hold thousands.
    return InvalidRequest(
        f"{where}: {first.detail}{more}. /docs shows what is expected.", errors=pointers[:20]
    )


def _from_http(error: HTTPException, request: Request | None) -> Problem:
    """What Starlette's router and FastAPI raise by themselves."""
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
            return Internal("The service failed on this request; its log has the reason.")
        case status:
            return InvalidRequest(
                f"{error.detail or HTTPStatus(status).phrase}. /docs shows what is expected."
            )


def _allowed(request: Request | None) -> str:
    """The methods of all routes at the path; the router only knows those of the first one."""
    if request is None:
        return ""
    methods: set[str] = set()
    for route in request.app.routes:
        regex = getattr(route, "path_regex", None)
        if regex is not None and regex.match(request.scope["path"]):
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))


class ProblemAnswers:
    """Middleware: whatever is raised below it, by routes or other middleware, is answered as a problem."""

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
        except ClientDisconnect:
            log.info("the client went away before its request was there")
        except Exception as error:
            problem = from_exception(error)
            if isinstance(problem, Internal):
                log.exception("failed on %s %s", scope["method"], scope["path"])
            if started:
                raise  # half an answer is out: uvicorn closes the connection, nobody takes it for whole
            await response(problem, scope["path"])(scope, receive, send)
