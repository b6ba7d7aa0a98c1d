"""What /openapi.json and /docs say about bodies, answers and problems.

The routes read bodies of many media types themselves, so FastAPI cannot know them: it is told here.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from starlette.routing import compile_path

from service import problems, schemas
from service.negotiation import JSON
from service.problems import MEDIA_TYPE

REFERENCE = "#/components/schemas/{model}"
SCHEMAS = (
    schemas.EncodeBody,
    schemas.DecodeBody,
    schemas.ReconstructBody,
    schemas.SampleBody,
    schemas.EncodeAnswer,
    schemas.ImagesAnswer,
    schemas.ReconstructAnswer,
    schemas.SampleAnswer,
    schemas.ModelsAnswer,
    schemas.ModelAnswer,
    schemas.Health,
    schemas.Readiness,
    problems.ProblemDetails,
)
PARAMETERS = {
    "name": {"schema": {"type": "string"}, "description": "a model that is loaded", "example": "mnist"},
    "version": {"schema": {"type": "integer", "minimum": 1}, "description": "a version of it that is loaded"},
}
HEADERS = {
    "X-Request-ID": "the id that was sent along, or a new one",
    "Server-Timing": "milliseconds that each step took",
    "X-Model": "name@version of the model that answered",
    "X-Seed": "the seed of the noise, where there was any",
}
# What can go wrong where something is computed; everywhere else it is a part of this.
STATUSES = (404, 406, 409, 413, 415, 422, 500, 503)


@dataclass(frozen=True)
class Operation:
    """One method of one path: what goes in and what comes out, as JSON and in all its media types."""

    name: str  # becomes the operationId, from which clients are generated
    method: str
    path: str
    endpoint: Callable[..., Awaitable[Response]]
    answer: type[BaseModel]
    writers: Iterable[str] = (JSON,)
    body: type[BaseModel] | None = None
    readers: Iterable[str] = ()


def describe(operation: Operation) -> dict[str, Any]:
    """Arguments for FastAPI.add_api_route."""
    extra: dict[str, Any] = {}
    if names := compile_path(operation.path)[2]:
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, **PARAMETERS[name]} for name in names
        ]
    if body := operation.body:
        needed = any(field.is_required() for field in body.model_fields.values())
        extra["requestBody"] = {"required": needed, "content": _content(operation.readers, body)}
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "description": inspect.cleandoc(operation.answer.__doc__ or ""),
            "content": _content(operation.writers, operation.answer),
            "headers": {name: _header(description) for name, description in HEADERS.items()},
        }
    }
    for status in STATUSES:
        problem = {MEDIA_TYPE: {"schema": _reference(problems.ProblemDetails)}}
        responses[status] = {"description": HTTPStatus(status).phrase, "content": problem}
    return {"openapi_extra": extra, "responses": responses, "response_model": None}


def install(app: FastAPI) -> None:
    """Add the schemas that `describe` refers to, which FastAPI does not see by itself."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = FastAPI.openapi(app)
            _, definitions = models_json_schema(
                [(model, "validation") for model in SCHEMAS], ref_template=REFERENCE
            )
            components = schema.setdefault("components", {})
            components["schemas"] = definitions["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _content(media_types: Iterable[str], model: type[BaseModel]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    return {
        media_type: {"schema": _reference(model) if media_type == JSON else binary}
        for media_type in media_types
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}
