"""Puts every endpoint into the application, with what /docs says about it."""

from collections.abc import Iterable

from fastapi import FastAPI

from service.http import openapi
from service.http.info import INFO, RELOAD, healthz, readyz, show_metrics, show_problem
from service.http.router import Route


def add_routes(app: FastAPI, routes: Iterable[Route]) -> None:
    """The operations at `routes`, and everything that computes nothing."""
    for route in routes:
        if route.operation is not None:
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=[route.method],
                **openapi.describe_operation(route.operation, route),
            )
    keys = app.state.service.settings.keys()
    for info in (*INFO, *([RELOAD] if keys else [])):
        app.add_api_route(info.path, info.endpoint, methods=[info.method], **openapi.describe_info(info))
    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):
        # Some load balancers probe with HEAD, and so does `wget --spider`.
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", show_metrics, include_in_schema=False)
    app.add_api_route("/problems/{slug}", show_problem, include_in_schema=False)
