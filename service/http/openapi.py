"""What /openapi.json and /docs say about bodies, answers and problems.

The routes read bodies of many media types themselves, so FastAPI cannot know them: it is told here.
`python -m service.http.openapi > docs/openapi.json` writes the document.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from starlette.routing import compile_path

from service.core import problems
from service.core.problems import MEDIA_TYPE
from service.http import examples
from service.http.forms import FILES
from service.http.negotiation import JSON, MULTIPART
from service.operations import fields as schemas
from service.operations import latent_fields as latent_schemas

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
    latent_schemas.MapAnswer,
    latent_schemas.ScoreBody,
    latent_schemas.ScoreAnswer,
    latent_schemas.InterpolateBody,
    latent_schemas.InterpolateAnswer,
    latent_schemas.TraverseBody,
    latent_schemas.TraverseAnswer,
    latent_schemas.ArithmeticBody,
    latent_schemas.ArithmeticAnswer,
    latent_schemas.SimilarityBody,
    latent_schemas.SimilarityAnswer,
    schemas.Health,
    schemas.Readiness,
    problems.ProblemDetails,
)
# Answers that nothing is computed for.
TOLD = (schemas.ModelsAnswer, schemas.ModelAnswer, schemas.Health, schemas.Readiness)
BINARY = {"type": "string", "format": "binary"}
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
RETRY_AFTER = "seconds after which to try again"
# What can go wrong where something is computed, and where something is told. Not all of it happens already,
# but a client had better be ready for all of the problems that this service has a page for.
COMPUTING = frozenset({401, 404, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504})
INFORMING = frozenset({401, 404, 409, 422, 429, 500, 503})


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
        content = _content(operation.readers, body, sent=True)
        extra["requestBody"] = {"required": needed, "content": content}
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "description": inspect.cleandoc(operation.answer.__doc__ or ""),
            "content": _content(operation.writers, operation.answer, sent=False),
            "headers": {name: _header(description) for name, description in HEADERS.items()},
        }
    }
    for status in sorted(INFORMING if operation.answer in TOLD else COMPUTING):
        responses[status] = _problems(status)
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
            components["securitySchemes"] = {
                "ApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "one of the server's API keys, if it has any",
                }
            }
            schema["security"] = [{}, {"ApiKey": []}]
            components["examples"] = examples.components()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def document() -> dict[str, Any]:
    """The document as a service with default settings shows it."""
    from service.app import create_app  # which imports this module
    from service.settings import Settings

    return create_app(Settings()).openapi()


def _content(media_types: Iterable[str], model: type[BaseModel], *, sent: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type in media_types:
        if media_type == JSON:
            content[media_type] = {
                "schema": _reference(model),
                "examples": examples.of_model(model.__name__),
            }
            continue
        content[media_type] = {
            "schema": _form(model) if media_type == MULTIPART else BINARY,
            "examples": examples.of_binary(media_type, sent=sent),
        }
    return content


def _form(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a JSON body as those of a form: images are files; there is no null and no empty list, and
    one value cannot be told from a list of one."""
    fields = model.model_json_schema()["properties"]
    fields.pop("latents", None)  # numbers are no files: they come as JSON or npy
    for field in fields.values():
        if choices := [each for each in field.get("anyOf", ()) if each != {"type": "null"}]:
            del field["anyOf"], field["default"]
            field |= choices[0]
        if field.get("type") == "array":
            several = {key: field.pop(key) for key in ("type", "items", "maxItems") if key in field}
            field.pop("minItems", None)
            field["anyOf"] = [several, several["items"]]
    fields[FILES] = {"type": "array", "items": BINARY, "minItems": 1, "description": "image files"}
    return {"type": "object", "properties": fields, "required": [FILES], "additionalProperties": False}


def _problems(status: int) -> dict[str, Any]:
    """A status of 400 or above, with an example of each problem that has it."""
    kinds = [kind for kind in problems.kinds() if kind.status == status]
    content: dict[str, Any] = {"schema": _reference(problems.ProblemDetails), "examples": {}}
    for kind in kinds:
        content["examples"] |= examples.of_problem(kind.slug)
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: content}}
    if any(kind.retry_after for kind in kinds):
        described["headers"] = {"Retry-After": _header(RETRY_AFTER)}
    return described


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


if __name__ == "__main__":
    print(json.dumps(document(), indent=1, ensure_ascii=False))
