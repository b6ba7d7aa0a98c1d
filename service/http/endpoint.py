"""The adapter from HTTP to any operation: negotiate, read, run, write."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, cast

from fastapi import Query, Request
from fastapi.responses import Response

from service.core.admission import ClientGone
from service.core.models import Model, Models
from service.core.problems import InvalidRequest, Pointer
from service.core.service import Budget, Service
from service.core.trace import timed
from service.http import answers, caching
from service.http.bodies import READERS, files
from service.http.forms import read_form
from service.http.headers import header
from service.http.negotiation import JSON, MULTIPART, content_type, negotiate
from service.http.parsing import merge, parse, parse_form
from service.operations.fields import Options
from service.operations.operation import Inputs, Operation

Endpoint = Callable[[Request, Any], Awaitable[Response]]


def endpoint(operation: Operation) -> Endpoint:
    """The function that answers the requests for an operation, as FastAPI takes it."""
    writers = answers.WRITERS[operation.outputs]

    async def answer(request: Request, query: Options) -> Response:
        service = service_of(request)
        # First of all, so that nothing is computed that cannot be sent.
        media_type = negotiate(header(request.scope, b"accept"), writers)
        try:
            model, options, inputs = await _read(request, service, operation, query)
            keep: Mapping[str, str] = {}
            if request.method == "GET" and operation.cacheable(options):
                pinned = caching.names_version(request, options.model)
                tag = caching.etag(model, operation.name, media_type, options)
                if unchanged := caching.not_modified(request, tag, model, pinned=pinned):
                    return unchanged
                keep = caching.headers(tag, pinned=pinned)
            found = await operation.run(service, model, options, *inputs)
        except InvalidRequest as problem:
            problem.errors = tuple(_located(error, query) for error in problem.errors)
            raise
        with timed("write"):
            size = answers.size(found, media_type)
            content = await service.run(size, lambda: writers[media_type](found, model.manifest.reference))
        return _response(content, media_type, model, found.seed, keep)

    answer.__name__ = operation.name
    answer.__doc__ = inspect.getdoc(operation.run)
    answer.__annotations__["query"] = Annotated[operation.options, Query()]
    return answer


def service_of(request: Request) -> Service:
    """The service of the application that a request reached."""
    service: Service = request.scope["app"].state.service
    return service


def resolve_model(models: Models, request: Request, options: Options | None = None) -> Model:
    """The model that the path, the query or the body names."""
    path = request.path_params
    reference = "@".join(path[key] for key in ("name", "version") if key in path)
    return models.resolve(reference, options.model if options else None)


async def _read(
    request: Request, service: Service, operation: Operation, query: Options
) -> tuple[Model, Options, tuple[Any, ...]]:
    """The model, the options of query and body together, and the inputs for `Operation.run`."""
    models = service.models  # NotReady before anything is read
    nothing = operation.inputs is Inputs.NOTHING
    data = b"" if nothing and request.method == "GET" else await body(request)
    if nothing and not data:
        return resolve_model(models, request, query), query, ()
    readers = READERS[operation.inputs]
    declared = header(request.scope, b"content-type")
    media_type = content_type(declared, readers)

    def read(budget: Budget) -> tuple[Model, Options, tuple[Any, ...]]:
        source: Any = data
        options = query
        if media_type == JSON:
            source = parse(operation.body, data)
            options = cast(Options, merge(query, source))
        elif media_type == MULTIPART:
            form = read_form(data, declared or "", max_files=budget.images)
            options, source = merge(query, parse_form(operation.options, form.fields)), form.files
        model = resolve_model(models, request, options)
        if nothing:
            return model, options, ()
        inputs = readers[media_type](source, model.manifest, budget)
        return model, options, (inputs, files(media_type, source)) if operation.takes_files else (inputs,)

    with timed("read"):
        return await service.read(len(data) if media_type in (JSON, MULTIPART) else 0, read)


async def body(request: Request) -> bytes:
    """The whole body of a request; ClientGone if the client disconnects before it has sent it.

    Starlette's own goes through a generator even for a body that arrived in one piece.
    """
    parts = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


class _Response(Response):
    """A response whose headers are known: Starlette would search them for the ones to add."""

    def __init__(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code, self.background, self.body, self.raw_headers = 200, None, body, headers


def _response(
    content: bytes, media_type: str, model: Model, seed: int | None, more: Mapping[str, str]
) -> Response:
    headers = [
        (b"content-length", b"%d" % len(content)),
        (b"content-type", media_type.encode("ascii")),
        (b"x-model", model.manifest.reference.encode("ascii")),
        (b"vary", b"Accept"),
    ]
    if seed is not None:
        headers.append((b"x-seed", b"%d" % seed))
    headers += [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in more.items()]
    return _Response(content, headers)


def _located(error: Pointer, query: Options) -> Pointer:
    """The pointer with its location: an operation does not know where its options came from."""
    if error.location:
        return error
    name = error.pointer[1:].partition("/")[0]
    fields = {field.alias or key: key for key, field in type(query).model_fields.items()}
    sent = fields.get(name) in query.model_fields_set
    return error.model_copy(update={"location": "query" if sent else "body"})
