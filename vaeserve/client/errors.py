"""The errors that the client raises.

ClientError
├── Unreachable       no answer, or an incomplete one
└── Refused           a response with a status of 400 or above
    ├── BadRequest    4xx: repeating the request gives the same response
    ├── Overloaded    429 or 503, after all retries
    └── ServerFault   other 5xx: quote the request_id to the service's operator
"""

from typing import Any

import httpx


class ClientError(Exception):
    """Base class of all errors of this package."""


class Unreachable(ClientError):
    """The service did not answer: nothing listens at this URL, or the connection broke."""


class Refused(ClientError):
    """A response with a status of 400 or above, read from its application/problem+json body (RFC 9457)."""

    retry_after: float | None = None  # seconds, if the service names them

    def __init__(self, status: int, slug: str, detail: str, request_id: str, errors: list[Any]) -> None:
        super().__init__(f"{detail} ({status} {slug}, request {request_id})")
        self.status = status
        self.slug = slug
        self.detail = detail
        self.request_id = request_id
        self.errors = errors


class BadRequest(Refused):
    """4xx: the request is wrong; `detail` says what to do."""


class Overloaded(Refused):
    """429 or 503: the queue is full or the service is not ready."""


class ServerFault(Refused):
    """5xx: the service failed."""


def refused(response: httpx.Response) -> Refused:
    """The error for a response with a status of 400 or above, from the service or from a proxy."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": response.text[:200] or response.reason_phrase}
    kind: type[Refused] = BadRequest if response.status_code < 500 else ServerFault
    if response.status_code in (429, 503):
        kind = Overloaded
    return kind(
        response.status_code,
        str(problem.get("type", "")).rpartition("/")[2] or response.reason_phrase,
        str(problem.get("detail") or problem.get("title") or response.reason_phrase),
        str(problem.get("instance") or response.headers.get("X-Request-ID", "unknown")),
        problem.get("errors") or [],
    )
