"""Checks API keys, sent as `Authorization: Bearer <key>`.

If keys are configured, everything that computes or reveals models and traffic needs one, /metrics too. The
probes of load balancers stay open, and so do the pages that are the same for everyone: the explorer, /docs,
/openapi.json and the pages about problems.
"""

import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.problems import Unauthorized

OPEN = re.compile(
    r"/(healthz|readyz|docs|redoc|openapi\.json|v2/health/(live|ready)|(explorer|problems|static-offline-docs)/.*)?"
)


class ApiKeyMiddleware:
    """Refuses requests without a valid key. Keys are compared as digests, each in constant time."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self.app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not OPEN.fullmatch(scope["path"]):
            self._check(Headers(scope=scope).get("authorization", ""))
        await self.app(scope, receive, send)

    def _check(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode("latin-1")).digest()
        known = [compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            wrong = ', error="invalid_token"' if authorization else ""
            raise Unauthorized(
                "The API key is not valid; send one of this server's as `Authorization: Bearer <key>`."
                if authorization
                else "This server requires an API key; send it as `Authorization: Bearer <key>`.",
                headers={"WWW-Authenticate": f'Bearer realm="vaeserve"{wrong}'},
            )
