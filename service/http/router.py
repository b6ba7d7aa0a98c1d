"""The short way to the endpoints that compute: one look-up instead of a framework's work for each request.

FastAPI documents these endpoints. What it does for each request (routes tried in turn, dependencies resolved,
exit stacks) takes longer than a small model does.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, get_type_hints

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.operations.fields import Options, parse_query

Endpoint = Callable[..., Awaitable[Response]]


class _Way(NamedTuple):
    """One method of one path; where the path has a {name}, any segment will do."""

    path: str
    segments: list[str]  # of the path
    endpoint: Endpoint
    query: type[Options] | None  # what the endpoint takes besides the request

    def parameters(self, segments: list[str]) -> dict[str, str] | None:
        """What the path's names stand for in a path of as many segments; None: it is another path."""
        found = {}
        for mine, given in zip(self.segments, segments, strict=True):
            if mine[:1] == "{" and given:
                found[mine[1:-1]] = given
            elif mine != given:
                return None
        return found


class Direct:
    """Middleware, innermost: answers requests for the paths of `operations`, passes all others on.

    Each is a method, a path and an endpoint, which takes `request` and may take `query`: the type of that is
    what is parsed. They are told apart by how many segments a path has, and by the last one.
    """

    def __init__(self, app: ASGIApp, *, operations: Iterable[tuple[str, str, Endpoint]]) -> None:
        self.app = app
        self.ways: dict[tuple[str, int, str], _Way] = {}
        for method, path, endpoint in operations:
            segments = path.split("/")
            key = method, len(segments), segments[-1]
            if key in self.ways:
                raise ValueError(f"{method} {path} and {self.ways[key].path} cannot be told apart")
            self.ways[key] = _Way(path, segments, endpoint, get_type_hints(endpoint).get("query"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        segments = scope["path"].split("/")
        way = self.ways.get((scope["method"], len(segments), segments[-1]))
        parameters = way.parameters(segments) if way else None
        if way is None or parameters is None:
            return await self.app(scope, receive, send)
        scope["route"], scope["path_params"] = way, parameters  # as routers do
        request = Request(scope, receive, send)
        query = [_options(way.query, scope["query_string"])] if way.query else []
        response = await way.endpoint(request, *query)
        await response(scope, receive, send)


@lru_cache(1024)  # options are frozen, and most requests say nothing, or the same as the last one
def _options(kind: type[Options], query: bytes) -> Options:
    return parse_query(kind, query)
