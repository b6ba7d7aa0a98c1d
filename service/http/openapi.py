"""The OpenAPI document: bodies, answers, problems and examples of everything that is documented.

FastAPI cannot know which media types an endpoint reads and writes; it learns that here, from the
declarations. `python -m service.http.openapi > docs/openapi.json` writes the document.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import compile_path

from service.core import problems
from service.core.problems import MEDIA_TYPE, ProblemDetails
from service.core.service import Service
from service.http import examples
from service.http.answers import WRITERS
from service.http.auth import OPEN
from service.http.bodies import READERS
from service.http.forms import FILES
from service.http.info import INFO, RELOAD, Info
from service.http.negotiation import JSON, MULTIPART
from service.http.router import Route
from service.operations.operation import Example, Operation, all_operations
from vaeserve.bundle.manifest import Manifest

REFERENCE = "#/components/schemas/{model}"
BINARY = {"type": "string", "format": "binary"}
BY_NAME = "By model and version"
TAGS = {
    "Images": "Images to latents and back, new images, and how usual an image is.",
    "Latent space": "Ways through the latent space of the default model.",
    "Models": "What is loaded.",
    "Health": "Probes of load balancers and orchestrators.",
    BY_NAME: "The operations again, for the model and the version that the path names.",
}
HEADERS = {
    "X-Request-ID": "the request's own id, or a new one",
    "Server-Timing": "milliseconds that each step took",
    "X-Model": "name@version of the model that answered",
    "X-Seed": "the seed of the noise, where there was any",
}
# Statuses of what can go wrong with operations, and elsewhere. Clients had better be ready for all of them.
OPERATION_STATUSES = (401, 404, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504)
INFO_STATUSES = (401, 404, 409, 422, 429, 500, 503)


def describe_operation(operation: Operation, route: Route) -> dict[str, Any]:
    """Arguments for FastAPI.add_api_route."""
    extra: dict[str, Any] = {}
    # GET takes a body nowhere; POST takes one wherever there is something to send.
    takes_body = route.method != "GET"
    if takes_body:
        needed = any(field.is_required() for field in operation.body.model_fields.values())
        content = _content(READERS[operation.inputs], operation.body, operation.requests, sent=True)
        extra["requestBody"] = {"required": needed, "content": content}
    first = not route.form if operation.default_model else route.form == "with_model"
    suffixes = [operation.name, *(["post"] if takes_body and len(operation.methods) > 1 else [])]
    return _description(
        name="_".join([*suffixes, *([route.form] if route.form else [])]),
        tag=operation.tag if first else BY_NAME,
        path=route.path,
        declared=operation,
        writers=WRITERS[operation.outputs],
        statuses=OPERATION_STATUSES,
        extra=extra,
    )


def describe_info(info: Info) -> dict[str, Any]:
    """Arguments for FastAPI.add_api_route."""
    return _description(info.name, info.tag, info.path, info, (JSON,), INFO_STATUSES, {})


def _description(
    name: str,
    tag: str,
    path: str,
    declared: Operation | Info,
    writers: Iterable[str],
    statuses: Iterable[int],
    extra: dict[str, Any],
) -> dict[str, Any]:
    if parameters := compile_path(path)[2]:
        extra["parameters"] = [{"$ref": f"#/components/parameters/{each}"} for each in parameters]
    run = declared.run if isinstance(declared, Operation) else declared.endpoint
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "description": inspect.cleandoc(declared.result.__doc__ or ""),
            "content": _content(writers, declared.result, declared.answers, sent=False),
            "headers": {header: _header(description) for header, description in HEADERS.items()},
        }
    }
    responses |= {status: _problems(status) for status in statuses}
    return {
        "operation_id": name,
        "summary": _first_sentence(inspect.getdoc(run) or ""),
        "tags": [tag],
        "openapi_extra": extra,
        "responses": responses,
        "response_model": None,
    }


def _first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def install(app: FastAPI) -> None:
    """Complete the document with what the descriptions refer to.

    The examples are for the default model, so the document changes when that does.
    """
    service: Service = app.state.service
    built: dict[str, dict[str, Any]] = {}  # at most one, by the reference of the model in its examples

    def build() -> dict[str, Any]:
        manifest, named = examples.model(service)
        if manifest.reference not in built:
            built.clear()
            app.openapi_schema = None
            schema = FastAPI.openapi(app)
            keys = service.settings.keys()
            operations, infos = all_operations(), (*INFO, *([RELOAD] if keys else []))
            bodies = [each.body for each in operations if each.methods != ("GET",)]
            results = [*(each.result for each in operations), *(each.result for each in infos)]
            kinds: dict[type[BaseModel], None] = dict.fromkeys([*bodies, *results, ProblemDetails])
            _, definitions = models_json_schema(
                [(kind, "validation") for kind in kinds], ref_template=REFERENCE
            )
            schema["components"] = {
                "schemas": definitions["$defs"],
                "parameters": examples.parameters(manifest),
                "examples": examples.components(manifest, operations, infos, name_model=named),
            }
            schema["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
            _drop_missing(schema, schema["components"]["examples"])
            if keys:
                _lock(schema)
            built[manifest.reference] = schema
        return built[manifest.reference]

    app.openapi = build  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _lock(schema: dict[str, Any]) -> None:
    """Mark the operations that need an API key."""
    schema["components"]["securitySchemes"] = {
        "ApiKey": {"type": "http", "scheme": "bearer", "description": "one of the server's API keys"}
    }
    schema["security"] = [{"ApiKey": []}]
    for path, methods in schema["paths"].items():
        if OPEN.fullmatch(path):
            for operation in methods.values():
                operation["security"] = []


def _drop_missing(node: Any, there: dict[str, Any]) -> None:
    """Remove references to examples that this model does not have."""
    if isinstance(node, dict):
        listed = node.get("examples")
        if isinstance(listed, dict) and node is not there:
            for key, value in list(listed.items()):
                reference = value.get("$ref", "") if isinstance(value, dict) else ""
                if (
                    reference.startswith(examples.PREFIX)
                    and reference.removeprefix(examples.PREFIX) not in there
                ):
                    del listed[key]
        for value in node.values():
            _drop_missing(value, there)
    elif isinstance(node, list):
        for value in node:
            _drop_missing(value, there)


def document() -> dict[str, Any]:
    """The document as a service with default settings and no models shows it."""
    from service.app import create_app  # which imports this module
    from service.settings import Settings

    return create_app(Settings()).openapi()


def _content(
    media_types: Iterable[str],
    model: type[BaseModel],
    named: Callable[[Manifest], Iterable[Example]],
    *,
    sent: bool,
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type in media_types:
        if media_type == JSON:
            content[media_type] = {"schema": _reference(model), "examples": examples.references(model, named)}
        else:
            content[media_type] = {
                "schema": _form(model) if media_type == MULTIPART else BINARY,
                "examples": examples.command(media_type, sent=sent),
            }
    return content


def _form(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a JSON body as those of a form: images are files; null and empty lists do not
    exist, and one value looks the same as a list of one."""
    fields = model.model_json_schema()["properties"]
    fields.pop("latents", None)  # numbers come as JSON or npy
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
    content: dict[str, Any] = {
        "schema": _reference(ProblemDetails),
        "examples": {kind.slug: {"$ref": examples.PREFIX + kind.slug} for kind in kinds},
    }
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: content}}
    if any(kind.retry_after for kind in kinds):
        described["headers"] = {"Retry-After": _header("seconds after which to try again")}
    return described


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


if __name__ == "__main__":
    print(json.dumps(document(), indent=1, ensure_ascii=False))
