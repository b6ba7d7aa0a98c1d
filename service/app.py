"""The assembly of the service: settings, middleware, routes, and the life of the models."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline  # /docs with its own copies of what would come from a CDN
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.core.problems import Problem
from service.core.service import Service
from service.http import errors, openapi
from service.http.answers import warm_up
from service.http.auth import ApiKeyMiddleware
from service.http.errors import ProblemMiddleware
from service.http.explorer import add_explorer
from service.http.limits import AdmissionMiddleware
from service.http.router import FastPath, Route, operation_routes
from service.http.routes import add_routes
from service.http.tracing import TracingMiddleware
from service.oip import routes as oip
from service.settings import Settings

DESCRIPTION = """A variational autoencoder over HTTP: images to latents and back, and new images.

Bodies are JSON, image files, forms or `application/x-npy`; the Accept header selects the format of the
answer. Every error is `application/problem+json`. Every operation is pure, so it is safe to send a request
again.
"""

log = logging.getLogger(__name__)


def _log_failure(service: Service) -> None:
    if service.failure:
        log.error("not ready: %s", service.failure)


def create_app(
    settings: Settings | None = None,
    *,
    on_loaded: Callable[[Service], None] = _log_failure,
    load_first: bool = False,
) -> FastAPI:
    """The ASGI application. Without settings it reads the environment.

    It answers at once, and computes once its models are loaded. `on_loaded` is called then, or when loading
    failed. With `load_first` its start takes until then.
    """
    settings = settings or Settings()
    service = Service(settings, warm_up=warm_up)

    async def load() -> None:
        await service.load()
        on_loaded(service)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        jobs = (load(), service.watch(), service.keep_measuring())
        tasks = [asyncio.create_task(job) for job in jobs]
        if load_first:
            await asyncio.wait(tasks[:1])
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        service.close()

    app = FastAPIOffline(
        title="vaeserve",
        version=version("vaeserve"),
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "this server"}],
        lifespan=life,
        # FastAPI's own, inert unless asked for. No logs: they would quote what was sent.
        telemetry={
            "auto_configure": settings.otel,
            "tracing": settings.otel,
            "metrics": settings.otel,
            "logs": False,
            "operation_spans": False,
        },
        # A client that is redirected because of a slash would have to send its images twice.
        redirect_slashes=False,
        # Without it FastAPI answers what fails below it in its own format.
        middleware=[Middleware(ProblemMiddleware)],
        exception_handlers={kind: errors.answer for kind in (Problem, HTTPException, RequestValidationError)},
    )
    app.state.service = service
    routes = operation_routes()
    add_routes(app, routes)
    add_explorer(app)
    oip.add_routes(app)
    openapi.install(app)
    # Around FastAPI's own middleware, whose work for every request takes longer than a small model does.
    app.middleware_stack = app.build_middleware_stack()
    for middleware in reversed(_stack(service, [*routes, *oip.INFER])):
        app.middleware_stack = middleware.cls(app.middleware_stack, *middleware.args, **middleware.kwargs)
    return app


def _stack(service: Service, fast: Iterable[Route]) -> list[Middleware]:
    """What a request passes before FastAPI, from the outside in."""
    settings = service.settings
    return [
        Middleware(TracingMiddleware, metrics=service.metrics, access_log=settings.access_log),
        *_cors(settings),
        Middleware(ProblemMiddleware),
        *([Middleware(ApiKeyMiddleware, keys=keys)] if (keys := settings.keys()) else []),
        Middleware(AdmissionMiddleware, admission=service.admission),
        # With OpenTelemetry every request goes through FastAPI, which records its route.
        *([] if settings.otel else [Middleware(FastPath, routes=fast)]),
    ]


def _cors(settings: Settings) -> list[Middleware]:
    """What lets pages of other origins call this service, if any may."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=[*openapi.HEADERS, "Retry-After", "WWW-Authenticate"],
        )
    ]
