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

# Of each problem one `detail`, and the pointers of those that have any.
DETAILS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "invalid-request": (
        "query /n: Input should be greater than or equal to 1. /docs shows what is expected.",
        [("/n", "query", "Input should be greater than or equal to 1")],
    ),
    "bad-image": (
        "/images/0 the bytes are not a readable image (unknown format); send PNG, JPEG, WEBP, GIF, BMP.",
        [
            (
                "/images/0",
                "body",
                "the bytes are not a readable image (unknown format); send PNG, JPEG, WEBP, GIF, BMP",
            )
        ],
    ),
    "wrong-shape": (
        "/latents/0 is [3]; mnist@1 takes [32].",
        [("/latents/0", "body", "is [3]; mnist@1 takes [32]")],
    ),
    "not-found": ("There is nothing at /encoded; /docs shows what there is.", []),
    "unknown-model": ("There is no model 'unknown' here; there are mnist.", []),
    "method-not-allowed": ("/encode has no GET; it has POST.", []),
    "not-acceptable": (
        "Nothing that Accept asks for can be made here; ask for application/json, application/x-npy, "
        "application/x-npz.",
        [],
    ),
    "slow-request": (
        "The body did not arrive in time; send it at more than 16,384 bytes a second, with the right "
        "Content-Length.",
        [],
    ),
    "wrong-model": (
        "mnist@9 is not loaded; there is mnist@1. Name one of these: latents of one version mean nothing to "
        "another.",
        [],
    ),
    "no-prior": (
        "mnist@1 has no prior to sample from; publish a version with one, or send latents to /decode.",
        [],
    ),
    "too-large": ("n = 257 is more than the 256 of one request; send several.", []),
    "unsupported-media-type": (
        "text/plain cannot be read here; send application/json, application/x-npy. "
        "With curl: -H 'Content-Type: application/json'.",
        [],
    ),
    "unauthorized": ("Send an API key: `Authorization: Bearer <key>`.", []),
    "overloaded": ("More work is waiting than can be done in time; try again after Retry-After seconds.", []),
    "not-ready": ("The models are being loaded; try again in a moment.", []),
    "draining": ("The service is stopping; try again, another replica will answer.", []),
    "timeout": ("The answer was not there in time; send less at once, or try again later.", []),
    "internal": (
        "The service failed on this request; its log has the reason under the id in `instance`.",
        [],
    ),
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
        detail, pointers = DETAILS[kind.slug]
        value = {
            "type": f"/problems/{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "instance": "0b6e7c1d92f4a853",
        }
        if pointers:
            names = ("pointer", "location", "detail")
            value["errors"] = [dict(zip(names, each, strict=True)) for each in pointers]
        found[kind.slug] = {"summary": kind.title, "value": value}
    return found
