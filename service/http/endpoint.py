"""The hops that all computing endpoints share: the model that is meant, rows in, an answer out.

The routes call these one after the other; what is special about a route stands in the route.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from service.core.problems import TooLarge, WrongModel
from service.core.service import ServedModel, ServedModels, Service
from service.core.trace import timed
from service.http import negotiation
from service.http.codecs import ANIMATION_WRITERS, Answer, Budget
from service.http.forms import read_form
from service.http.headers import header
from service.http.negotiation import JSON, MULTIPART
from service.operations import fields as schemas
from service.operations.fields import Options, merge, parse

O = TypeVar("O", bound=Options)  # noqa: E741
T = TypeVar("T")


def service_of(request: Request) -> Service:
    service: Service = request.scope["app"].state.service
    return service


def wanted(request: Request, writers: Iterable[str]) -> str:
    """The media type of the answer: asked first, so that nothing is computed for nobody."""
    return negotiation.negotiate(header(request.scope, b"accept"), writers)


def chosen(models: ServedModels, request: Request, options: Options | None = None) -> ServedModel:
    """The model that the path, the query or the body names."""
    path = request.path_params
    reference = "@".join(path[key] for key in ("name", "version") if key in path)
    return models.choose(reference, options.model if options else None)


async def read(
    request: Request, query: O, kind: type[O], field: str | None, readers: Mapping[str, Callable[..., T]]
) -> tuple[ServedModel, O, T]:
    """The model that is meant, the options, and rows for the model.

    `field` has the data of a JSON body; None: the reader is given all of it.
    """
    service = service_of(request)
    declared = header(request.scope, b"content-type")
    media_type = negotiation.content_type(declared, readers)
    models = service.models  # without any, nothing is read
    data = await body(request)

    def rows(budget: Budget) -> tuple[ServedModel, O, T]:
        source: Any = data
        options = query
        if media_type == JSON:
            parsed = parse(kind, data)
            options, source = merge(query, parsed), getattr(parsed, field) if field else parsed
        elif media_type == MULTIPART:
            form = read_form(data, declared or "", max_files=budget.images)
            options, source = merge(query, schemas.parse_form(type(query), form.fields)), form.files
        model = chosen(models, request, options)
        return model, options, readers[media_type](source, model.manifest, budget)

    with timed("read"):
        return await service.read(len(data) if media_type in (JSON, MULTIPART) else 0, rows)


async def body(request: Request) -> bytes:
    """The whole body of a request; ClientDisconnect when the client goes away before it is there.

    Like Starlette's, which goes through a generator even for a body that has come in one piece.
    """
    parts = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


class Answered(Response):
    """An answer whose headers are few and known: Starlette looks through them for what it would add."""

    def __init__(self, body: bytes, media_type: str, headers: Mapping[str, str]) -> None:
        self.status_code, self.background, self.body = 200, None, body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode("ascii")),
            *((name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers.items()),
        ]


async def write(request: Request, media_type: str, answer: Answer) -> Response:
    with timed("write"):
        content = await service_of(request).run(answer.values, lambda: ANIMATION_WRITERS[media_type](answer))
    headers = {"X-Model": answer.model, "Vary": "Accept"}
    if answer.seed is not None:
        headers["X-Seed"] = str(answer.seed)
    return Answered(content, media_type, headers)


def seed_of(given: int | None) -> int:
    """The seed of the request, or a new one that is short enough to be typed again."""
    return secrets.randbits(32) if given is None else given


def kl_of(model: ServedModel) -> tuple[float, ...]:
    """The mean KL of each flattened dimension on held-out images, in nats; a problem if there is none."""
    if model.manifest.latent.kl is None:
        raise WrongModel(
            f"{model.manifest.reference} does not say how much each dimension is used (`latent.kl`); "
            "name the dimensions yourself, or use a model that vae-train published."
        )
    return model.manifest.latent.kl


def check_rows(service: Service, rows: int, what: str) -> None:
    """TooLarge when a request asks for more images than one may."""
    if rows > service.settings.max_samples:
        raise TooLarge(
            f"{what} = {rows:,} is more than the {service.settings.max_samples} of one request; send several."
        )
