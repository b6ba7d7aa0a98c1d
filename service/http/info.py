"""Endpoints that compute nothing: the models, the process's health, metrics, and what problems mean."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field

from service.core import problems
from service.http.endpoint import resolve_model, service_of
from service.http.negotiation import JSON
from service.operations.fields import MODEL
from service.operations.operation import Example
from vaeserve.bundle.manifest import ImageSpec, Manifest


class Limits(BaseModel):
    """What one request may ask of this server."""

    max_body: int = Field(description="bytes")
    max_images: int
    max_samples: int
    max_pixels: int = Field(
        description="of one image file (WebP: half as many); all files of a request: four times as many"
    )


class ModelSummary(BaseModel):
    """What a client must know of a model to send it something."""

    name: str
    versions: list[int] = Field(description="those loaded; requests without a version get the newest")
    default: bool = Field(description="whether requests that name no model get this one")
    image: ImageSpec
    latent: tuple[int, ...] = Field(description="shape of one image's latents")


class ModelsAnswer(BaseModel):
    """The loaded models, and the folders that were refused, with the reason."""

    models: list[ModelSummary]
    refused: dict[str, str]


class ModelAnswer(BaseModel):
    """Everything about one model."""

    model: str = Field(examples=[MODEL])
    state: Literal["ready"]
    versions: list[int]
    default: bool
    refused: dict[str, str] = Field(description="versions of it that are not served, by folder, and why")
    limits: Limits
    manifest: Manifest


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The models are loaded and have reproduced their golden vectors."""

    status: Literal["ready"] = "ready"
    models: list[str] = Field(examples=[[MODEL]])


async def list_models(request: Request) -> Response:
    """The models that are loaded, and what was refused."""
    models = service_of(request).models
    summaries = [
        ModelSummary(
            name=model.manifest.name,
            versions=models.versions(model.manifest.name),
            default=model.manifest.name == models.default,
            image=model.manifest.image,
            latent=model.manifest.latent.shape,
        )
        for model in models.newest()
    ]
    return _json(ModelsAnswer(models=summaries, refused=models.refused).model_dump())


async def show_model(request: Request) -> Response:
    """One model: its manifest, and the limits of this server."""
    service = service_of(request)
    settings, models = service.settings, service.models
    manifest = resolve_model(models, request).manifest
    answer = ModelAnswer(
        model=manifest.reference,
        state="ready",
        versions=models.versions(manifest.name),
        default=manifest.name == models.default,
        refused=models.refused_of(manifest.name),
        limits=Limits.model_validate(settings, from_attributes=True),
        manifest=manifest,
    )
    return _json(answer.model_dump(mode="json"), {"X-Model": manifest.reference})


async def reload_model(request: Request) -> Response:
    """Look for new versions now instead of at the next poll, and answer with what is loaded then."""
    await service_of(request).load()
    return await show_model(request)


async def healthz(request: Request) -> Response:
    """Whether the process is alive: 503 when one batch has been running for too long."""
    service_of(request).check_alive()
    return _json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether it can serve: 503 with the reason while it is starting or stopping, or has no models."""
    service = service_of(request)
    service.check_ready()
    return _json(
        {"status": "ready", "models": [model.manifest.reference for model in service.models.newest()]}
    )


async def show_metrics(request: Request) -> Response:
    """Metrics for Prometheus; deploy/README.md lists them."""
    text, media_type = await service_of(request).metrics_text(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


async def show_problem(slug: str) -> Response:
    """What a kind of problem means: the page behind `type` in every error."""
    for kind in problems.kinds():
        if kind.slug == slug:
            text = f"{kind.title} ({slug}, status {kind.status})\n\n{inspect.cleandoc(kind.__doc__ or '')}\n"
            return PlainTextResponse(text)
    slugs = ", ".join(sorted({kind.slug for kind in problems.kinds()}))
    raise problems.NotFound(f"There is no problem {slug!r}; there are {slugs}.")


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), media_type=JSON, headers=headers)


@dataclass(frozen=True)
class Info:
    """The declaration of an endpoint that is documented and computes nothing."""

    name: str  # becomes the operationId
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    result: type[BaseModel]
    tag: str
    answers: Callable[[Manifest], Iterable[Example]]
    method: str = "GET"


def _summary(its: Manifest) -> list[Example]:
    summary = {
        "name": its.name,
        "versions": [its.version],
        "default": True,
        "image": its.image.model_dump(),
        "latent": its.latent.shape,
    }
    return [Example("one", "One model", {"models": [summary], "refused": {}})]


def _model(its: Manifest) -> list[Example]:
    limits = {"max_body": 32 << 20, "max_images": 256, "max_samples": 256, "max_pixels": 1 << 24}
    value = {
        "model": its.reference,
        "state": "ready",
        "versions": [its.version],
        "default": True,
        "refused": {},
        "limits": limits,
        "manifest": its.model_dump(
            mode="json", include={"format", "name", "version", "created", "image", "latent"}
        ),
    }
    return [Example("model", "A model; its manifest has more fields", value)]


INFO = (
    Info("list_models", "/models", list_models, ModelsAnswer, "Models", _summary),
    Info("show_model", "/models/{name}", show_model, ModelAnswer, "Models", _model),
    Info("show_version", "/models/{name}/versions/{version}", show_model, ModelAnswer, "Models", _model),
    Info(
        "healthz",
        "/healthz",
        healthz,
        Health,
        "Health",
        lambda _: [Example("alive", "Alive", {"status": "ok"})],
    ),
    Info(
        "readyz",
        "/readyz",
        readyz,
        Readiness,
        "Health",
        lambda its: [Example("ready", "Ready", {"status": "ready", "models": [its.reference]})],
    ),
)
# Changes what the service does, so it is there only if API keys are configured.
RELOAD = Info(
    "reload_model", "/models/{name}/reload", reload_model, ModelAnswer, "Models", _model, method="POST"
)
