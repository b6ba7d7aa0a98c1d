"""The short way to the endpoints that compute: one look-up instead of a framework's work for each request.

FastAPI documents these endpoints, and serves them under their longer paths. What it does for each request
(routes tried in turn, dependencies resolved, exit stacks) takes longer than a small model does.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import get_type_hints

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.openapi import Operation
from service.schemas import Options, parse_query


class Direct:
    """Middleware, innermost: answers requests for exactly the paths of `operations`, passes all others on.

    Each of their endpoints takes `request` and `query`, and the type of the latter is what is parsed.
    """

    def __init__(self, app: ASGIApp, *, operations: Iterable[Operation]) -> None:
        self.app = app
        self.operations = {
            (operation.method, operation.path): (operation, get_type_hints(operation.endpoint)["query"])
            for operation in operations
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.operations.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            return await self.app(scope, receive, send)
        operation, kind = found
        scope["route"] = operation  # as routers do
        query = _options(kind, scope["query_string"])
        response = await operation.endpoint(Request(scope, receive, send), query)
        await response(scope, receive, send)


@lru_cache(1024)  # options are frozen, and most requests say nothing, or the same as the last one
def _options(kind: type[Options], query: bytes) -> Options:
    return parse_query(kind, query)
