"""Every way in which a request can fail, as exceptions that carry status, slug and title (RFC 9457).

Each may be raised anywhere and is answered as application/problem+json. No route contains a status number.
The docstring of each class is the text of its page /problems/<slug>.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, Field

from vaeserve.bundle.images import unreadable

MEDIA_TYPE = "application/problem+json"


class Pointer(BaseModel):
    """One fault of a request and its place."""

    pointer: str = Field(description="JSON pointer to the field", examples=["/images/0"])
    location: str = Field(description="`body`, `query` or `path`", examples=["body"])
    detail: str = Field(examples=["Field required"])


class ProblemDetails(BaseModel):
    """The body of every answer with a status of 400 or above (RFC 9457)."""

    type: str = Field(
        description="path of a page about this kind of problem", examples=["/problems/invalid-request"]
    )
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(description="what is wrong with this request, and what to do")
    instance: str = Field(description="id of the request, as in X-Request-ID and in the log")
    errors: list[Pointer] = Field(default=[], description="the places that are wrong; only with 422")


class Problem(Exception):
    """Answers the request with `detail`: one or two sentences that say what is wrong and what to do."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None  # seconds
    example: ClassVar[str]  # a `detail`, for the OpenAPI document
    example_errors: ClassVar[Sequence[Pointer]] = ()

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
    """A field, a parameter or the syntax of the body is wrong. `errors` lists each place; /docs shows what is
    expected."""

    status, slug, title = 422, "invalid-request", "The request is not valid"
    example = "query /n: Input should be greater than or equal to 1. /docs shows what is expected."
    example_errors = (
        Pointer(pointer="/n", location="query", detail="Input should be greater than or equal to 1"),
    )


class BadImage(InvalidRequest):
    """The bytes cannot be decoded as an image. Send a whole PNG, JPEG, WebP, GIF or BMP file."""

    slug, title = "bad-image", "The image cannot be read"
    example = f"/images/0 {unreadable('unknown format')}."
    example_errors = (Pointer(pointer="/images/0", location="body", detail=unreadable("unknown format")),)


class WrongShape(InvalidRequest):
    """An array has another shape or dtype than the model's. Send arrays of exactly that shape, or image
    files, which are resized."""

    slug, title = "wrong-shape", "The array has the wrong shape or type"
    example = "/latents/0 is [3]; mnist@1 takes [32]."
    example_errors = (Pointer(pointer="/latents/0", location="body", detail="is [3]; mnist@1 takes [32]"),)


class NotFound(Problem):
    """There is nothing at this path. /docs lists the paths."""

    status, slug, title = 404, "not-found", "There is nothing here"
    example = "There is nothing at /encoded; /docs shows what there is."


class UnknownModel(NotFound):
    """No model of this name is loaded. GET /models lists those that are."""

    slug, title = "unknown-model", "No such model"
    example = "There is no model 'unknown' here; there are mnist."


class MethodNotAllowed(Problem):
    """The path does not have this method. The Allow header lists the methods that it has."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"
    example = "/encode has no GET; it has POST."


class NotAcceptable(Problem):
    """This route cannot produce any media type in the Accept header. The detail lists those that it can."""

    status, slug, title = 406, "not-acceptable", "Not acceptable"
    example = (
        "Nothing that Accept asks for can be made here; ask for application/json, application/x-npy, "
        "application/x-npz."
    )


class SlowRequest(Problem):
    """The body did not arrive in time. Send it faster, or less of it."""

    status, slug, title = 408, "slow-request", "The request came too slowly"
    example = (
        "The body did not arrive in time; send it at more than 16,384 bytes a second, with the right "
        "Content-Length."
    )


class WrongModel(Problem):
    """The requested version is not loaded, the request names two different models, or the model was published
    without something that the request needs: a likelihood, a calibration or the KL of its dimensions.

    Latents of one version mean nothing to another, so the service never substitutes a version. Name a version
    that GET /models lists, or publish one that has what is missing.
    """

    status, slug, title = 409, "wrong-model", "Not this model"
    example = (
        "mnist@9 is not loaded; there is mnist@1. Name one of these: latents of one version mean nothing to "
        "another."
    )


class NoPrior(Problem):
    """The model was published without a prior, so there is nothing to sample from. Publish a version with a
    prior, or send latents of your own to /decode."""

    status, slug, title = 409, "no-prior", "No prior"
    example = "mnist@1 has no prior to sample from; publish a version with one, or send latents to /decode."


class TooLarge(Problem):
    """The body, an image or the number of images exceeds a limit. GET /models/{name} shows the limits; split
    the request."""

    status, slug, title = 413, "too-large", "Too large"
    example = "n = 257 is more than the 256 of one request; send several."


class UnsupportedMediaType(Problem):
    """This route cannot read the body's Content-Type. The detail lists the types that it can."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"
    example = (
        "text/plain cannot be read here; send application/json, application/x-npy. "
        "With curl: -H 'Content-Type: application/json'."
    )


class Unauthorized(Problem):
    """The request has no valid API key. Send one as `Authorization: Bearer <key>`."""

    status, slug, title = 401, "unauthorized", "Unauthorized"
    example = "Send an API key: `Authorization: Bearer <key>`."


class Overloaded(Problem):
    """More work is queued than can be done in time. Retry after the number of seconds in Retry-After."""

    status, slug, title, retry_after = 429, "overloaded", "Overloaded", 1
    example = "More work is waiting than can be done in time; try again after Retry-After seconds."


class NotReady(Problem):
    """The service is starting, has no model to serve, or its model is stuck. Retry after the number of
    seconds in Retry-After."""

    status, slug, title, retry_after = 503, "not-ready", "Not ready", 1
    example = "The models are being loaded; try again in a moment."


class Draining(Problem):
    """The service is stopping. Retry: another replica will answer."""

    status, slug, title, retry_after = 503, "draining", "Stopping", 1
    example = "The service is stopping; try again, another replica will answer."


class Timeout(Problem):
    """The answer was not ready before the deadline. Ask for less at a time, or retry later."""

    status, slug, title = 504, "timeout", "Out of time"
    example = "The answer was not there in time; send less at once, or try again later."


class Internal(Problem):
    """The service failed. Its log has the reason under the id of the request."""

    example = "The service failed on this request; its log has the reason under the id in `instance`."


def kinds(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Every kind of problem."""
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


def content(problem: Problem, request_id: str, *, status: int | None = None) -> bytes:
    """The problem as JSON, the body of the answer. `status` replaces the problem's own."""
    return orjson.dumps(fields(problem, request_id, status=status))


def fields(problem: Problem, request_id: str, *, status: int | None = None) -> dict[str, Any]:
    """The problem as RFC 9457 writes it; see ProblemDetails."""
    members: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": status or problem.status,
        "detail": problem.detail,
        "instance": request_id,
    }
    if problem.errors:
        members["errors"] = [error.model_dump() for error in problem.errors]
    return members
