"""What can go wrong between a program and the service.

ClientError
├── Unreachable       no answer at all, or one that broke off
└── Refused           an answer ≥ 400; status, slug, detail and request_id are the service's
    ├── BadRequest    4xx: sending the same again gives the same answer
    ├── Overloaded    429 and 503: later it would work; retries were in vain
    └── ServerFault   other 5xx: quote the request_id to whoever runs the service
"""

from typing import Any

import httpx


class ClientError(Exception):
    """Base of all errors of this package."""


class Unreachable(ClientError):
    """No answer: the service does not run at this URL, or the connection broke."""


class Refused(ClientError):
    """An answer of status 400 or above, read from its application/problem+json body (RFC 9457)."""

    retry_after: float | None = None  # seconds that the service asks to wait

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
    """429 or 503: the service has no room or is not ready, also after the retries."""


class ServerFault(Refused):
    """5xx: a fault of the service."""


def refused(response: httpx.Response) -> Refused:
    """The error for an answer ≥ 400, also from a proxy that knows nothing of problem+json."""
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
