"""The routes of every operation, and a fast path to them: one look-up instead of a framework's work.

FastAPI has these routes too, and documents them. What it does for each request (trying routes in turn,
resolving dependencies, exit stacks) takes longer than a small model does. Both ways end in the same endpoint.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.endpoint import endpoint
from service.http.parsing import parse_query
from service.operations.fields import Options
from service.operations.operation import Operation, all_operations

# The path in front of an operation's name, by what the request names.
PREFIXES = {"": "", "with_model": "/models/{name}", "with_version": "/models/{name}/versions/{version}"}


class Route(NamedTuple):
    """One method of one path. `query` is the type of the endpoint's second argument, None for none."""

    method: str
    path: str
    endpoint: Callable[..., Awaitable[Response]]
    query: type[Options] | None = None
    operation: Operation | None = None
    form: str = ""  # a key of PREFIXES


def operation_routes() -> list[Route]:
    """Every operation in all its forms: for the default model, for a model, for one version of it."""
    routes = []
    for operation in all_operations():
        answer = endpoint(operation)
        for method in operation.methods:
            for form, prefix in PREFIXES.items():
                if form or operation.default_model:
                    path = f"{prefix}/{operation.name}"
                    routes.append(Route(method, path, answer, operation.options, operation, form))
    return routes


class FastPath:
    """Middleware, innermost: answers requests for `routes` itself, and passes all others on.

    Routes are found by method, number of segments and last segment; a {name} in a path matches any segment.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[Route]) -> None:
        self.app = app
        self.table: dict[tuple[str, int, str], tuple[Route, list[str]]] = {}
        for route in routes:
            segments = route.path.split("/")
            key = route.method, len(segments), segments[-1]
            if key in self.table:
                raise ValueError(
                    f"{route.method} {route.path} and {self.table[key][0].path} cannot be distinguished"
                )
            self.table[key] = route, segments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = scope["path"].split("/")
        found = self.table.get((scope["method"], len(given), given[-1]))
        parameters = _parameters(found[1], given) if found else None
        if found is None or parameters is None:
            return await self.app(scope, receive, send)
        route = found[0]
        scope["route"], scope["path_params"] = route, parameters  # where routers put them
        request = Request(scope, receive, send)
        if route.query is None:
            response = await route.endpoint(request)
        else:
            response = await route.endpoint(request, parse_query(route.query, scope["query_string"]))
        await response(scope, receive, send)


def _parameters(segments: list[str], given: list[str]) -> dict[str, str] | None:
    """What the names in a path stand for; None if it is another path. Both have as many segments."""
    parameters = {}
    for mine, its in zip(segments, given, strict=True):
        if mine[:1] == "{" and its:
            parameters[mine[1:-1]] = its
        elif mine != its:
            return None
    return parameters
