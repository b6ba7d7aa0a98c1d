"""The examples of the OpenAPI document: one for every body, every answer and every problem.

They are for a model that is loaded, so that each of them can be sent as it stands. Without a model they are
for `mnist@1`, with 32 latents. Tests send the requests and provoke the problems.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from service.core import problems
from service.core.service import Service
from service.http.info import Info
from service.operations.operation import Example, Operation
from vaeserve.bundle.manifest import ImageSpec, LatentSpec, Manifest

PREFIX = "#/components/examples/"
PLACEHOLDER = Manifest(
    name="mnist",
    version=1,
    created=datetime(2026, 11, 22, 12, tzinfo=UTC),
    image=ImageSpec(height=28, width=28, channels=1),
    latent=LatentSpec(shape=(32,), kl=(1.0,) * 32),
)

# Binary bodies are shown as the end of a curl command.
COMMANDS = {
    "multipart/form-data": "curl -F images=@one.png -F images=@two.jpg",
    "application/x-npy": "curl --data-binary @array.npy -H 'Content-Type: application/x-npy'",
}


def model(service: Service) -> tuple[Manifest, bool]:
    """The model that the examples are for, and whether requests must name it."""
    try:
        models = service.models
    except problems.NotReady:
        return PLACEHOLDER, False
    if (default := models.default_model()) is not None:
        return default.manifest, False
    return models.newest()[0].manifest, True


def references(
    schema: type[BaseModel], examples: Callable[[Manifest], Iterable[Example]]
) -> dict[str, dict[str, str]]:
    """The examples of a JSON body or answer, as references to what `components` returns."""
    return {name: {"$ref": f"{PREFIX}{schema.__name__}.{name}"} for name, _, _ in examples(PLACEHOLDER)}


def command(media_type: str, *, sent: bool) -> dict[str, Any]:
    """The end of a curl command, in place of bytes."""
    body = f"curl --data-binary @file -H 'Content-Type: {media_type}'"
    line = COMMANDS.get(media_type, body) if sent else f"curl -H 'Accept: {media_type}' -o file"
    return {"curl": {"summary": line}}


def parameters(manifest: Manifest) -> dict[str, Any]:
    """The parameters of paths."""
    parameter = {"in": "path", "required": True}
    return {
        "name": parameter
        | {
            "name": "name",
            "schema": {"type": "string"},
            "description": "a model that is loaded",
            "example": manifest.name,
        },
        "version": parameter
        | {
            "name": "version",
            "schema": {"type": "integer", "minimum": 1},
            "description": "a version of it that is loaded",
            "example": manifest.version,
        },
    }


def components(
    manifest: Manifest, operations: Iterable[Operation], infos: Iterable[Info], *, name_model: bool = False
) -> dict[str, Any]:
    """Every example: of bodies and answers as `EncodeBody.file`, of problems by their slug."""
    found: dict[str, Any] = {}
    for operation in operations:
        for name, summary, value in operation.requests(manifest):
            value = {"model": manifest.reference} | value if name_model else value
            found[f"{operation.body.__name__}.{name}"] = {"summary": summary, "value": value}
    declared: list[Operation | Info] = [*operations, *infos]
    for each in declared:
        for name, summary, value in each.answers(manifest):
            found[f"{each.result.__name__}.{name}"] = {"summary": summary, "value": value}
    for kind in problems.kinds():
        problem = kind(kind.example, errors=kind.example_errors)
        found[kind.slug] = {"summary": kind.title, "value": problems.fields(problem, "0b6e7c1d92f4a853")}
    return found
