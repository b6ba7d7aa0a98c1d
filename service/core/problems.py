"""Every way in which a request can fail, as exceptions that carry status, slug and title (RFC 9457).

Problem                           raised anywhere, answered as application/problem+json
├── InvalidRequest            422 a field, a parameter or the syntax of the body
│   ├── BadImage              422 bytes that cannot be decoded as an image
│   └── WrongShape            422 an array of another shape or dtype than the model's
├── NotFound                  404 no such path
│   └── UnknownModel          404 no model of that name is loaded
├── MethodNotAllowed          405 the path has other methods, see Allow
├── NotAcceptable             406 no media type in Accept can be produced
├── SlowRequest               408 the body did not arrive in time
├── WrongModel                409 the version is not loaded, or the model lacks what the request needs
├── NoPrior                   409 the model has no prior to sample from
├── TooLarge                  413 body, pixels or count
├── UnsupportedMediaType      415 the body's media type cannot be read
├── Unauthorized              401 no valid API key
├── Overloaded                429 the queue is full; retry after Retry-After
├── NotReady                  503 still loading; retry after Retry-After
├── Draining                  503 stopping; another replica will answer
├── Timeout                   504 the deadline passed
└── Internal                  500 our fault: no details, only the id under which they are logged

No route contains a status number. The docstring of each class is the text of its page /problems/<slug>.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, Field

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


class BadImage(InvalidRequest):
    """The bytes cannot be decoded as an image. Send a whole PNG, JPEG, WebP, GIF or BMP file."""

    slug, title = "bad-image", "The image cannot be read"


class WrongShape(InvalidRequest):
    """An array has another shape or dtype than the model's. Send arrays of exactly that shape, or image
    files, which are resized."""

    slug, title = "wrong-shape", "The array has the wrong shape or type"


class NotFound(Problem):
    """There is nothing at this path. /docs lists the paths."""

    status, slug, title = 404, "not-found", "There is nothing here"


class UnknownModel(NotFound):
    """No model of this name is loaded. GET /models lists those that are."""

    slug, title = "unknown-model", "No such model"


class MethodNotAllowed(Problem):
    """The path does not have this method. The Allow header lists the methods that it has."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(Problem):
    """This route cannot produce any media type in the Accept header. The detail lists those that it can."""

    status, slug, title = 406, "not-acceptable", "Not acceptable"


class SlowRequest(Problem):
    """The body did not arrive in time. Send it faster, or less of it."""

    status, slug, title = 408, "slow-request", "The request came too slowly"


class WrongModel(Problem):
    """The requested version is not loaded, the request names two different models, or the model was published
    without something that the request needs: a likelihood, a calibration or the KL of its dimensions.

    Latents of one version mean nothing to another, so the service never substitutes a version. Name a version
    that GET /models lists, or publish one that has what is missing.
    """

    status, slug, title = 409, "wrong-model", "Not this model"


class NoPrior(Problem):
    """The model was published without a prior, so there is nothing to sample from. Publish a version with a
    prior, or send latents of your own to /decode."""

    status, slug, title = 409, "no-prior", "No prior"


class TooLarge(Problem):
    """The body, an image or the number of images exceeds a limit. GET /models/{name} shows the limits; split
    the request."""

    status, slug, title = 413, "too-large", "Too large"


class UnsupportedMediaType(Problem):
    """This route cannot read the body's Content-Type. The detail lists the types that it can."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class Unauthorized(Problem):
    """The request has no valid API key. Send one as `Authorization: Bearer <key>`."""

    status, slug, title = 401, "unauthorized", "Unauthorized"


class Overloaded(Problem):
    """More work is queued than can be done in time. Retry after the number of seconds in Retry-After."""

    status, slug, title, retry_after = 429, "overloaded", "Overloaded", 1


class NotReady(Problem):
    """The service is starting, has no model to serve, or its model is stuck. Retry after the number of
    seconds in Retry-After."""

    status, slug, title, retry_after = 503, "not-ready", "Not ready", 1


class Draining(Problem):
    """The service is stopping. Retry: another replica will answer."""

    status, slug, title, retry_after = 503, "draining", "Stopping", 1


class Timeout(Problem):
    """The answer was not ready before the deadline. Ask for less at a time, or retry later."""

    status, slug, title = 504, "timeout", "Out of time"


class Internal(Problem):
    """The service failed. Its log has the reason under the id of the request."""


def kinds(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Every kind of problem."""
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


def content(problem: Problem, request_id: str, *, status: int | None = None) -> bytes:
    """The problem as JSON, the body of the answer. `status` replaces the problem's own."""
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
