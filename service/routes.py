"""The endpoints. Each names the hops of a request: read → batcher → engine → write.

The four that compute exist in three forms: `/encode`, `/models/{name}/encode` and
`/models/{name}/versions/{version}/encode`, all of them one function.
"""

import inspect
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from fastapi import FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response
from numpy.typing import NDArray

from service import negotiation, openapi, problems, schemas
from service.admission import admit
from service.codecs import ARRAY_WRITERS, IMAGE_READERS, LATENT_READERS, WRITERS, Answer, Budget, Reader
from service.forms import read_form
from service.negotiation import JSON, MULTIPART
from service.openapi import Operation
from service.runtime.engine import Posterior
from service.runtime.prior import noise
from service.schemas import (
    DecodeBody,
    EncodeAnswer,
    EncodeBody,
    EncodeOptions,
    Health,
    ImagesAnswer,
    Limits,
    ModelAnswer,
    ModelsAnswer,
    ModelSummary,
    Options,
    Readiness,
    ReconstructAnswer,
    ReconstructBody,
    SampleAnswer,
    SampleBody,
    SampleOptions,
    merge,
    parse,
)
from service.served import ServedModel, ServedModels, Service
from service.telemetry import timed

O = TypeVar("O", bound=Options)  # noqa: E741


async def encode(request: Request, query: Annotated[EncodeOptions, Query()]) -> Response:
    """Images to latents: the mean of each image's posterior.

    `return` asks for the log-variance and for a sample as well. Image files of any size and mode are fitted
    to the model's size; arrays must have it.
    """
    media_type = _wanted(request, ARRAY_WRITERS)
    model, options, images = await _read(request, query, EncodeBody, "images", IMAGE_READERS)
    posterior = await model.encode(images)
    arrays: dict[str, NDArray[Any]] = posterior._asdict()
    seed = None
    if "sample" in options.return_:
        seed = _seed(options.seed)
        draw = partial(_draw, posterior, seed)
        arrays["sample"] = await _service(request).run(posterior.mean.size, draw)
    chosen = {str(name): arrays[name] for name in options.return_}
    return await _write(request, media_type, Answer(model.manifest.reference, chosen, seed))


async def decode(request: Request, query: Annotated[Options, Query()]) -> Response:
    """Latents to images."""
    media_type = _wanted(request, WRITERS)
    model, _, latents = await _read(request, query, DecodeBody, "latents", LATENT_READERS)
    images = await model.decode(latents)
    return await _write(request, media_type, Answer(model.manifest.reference, {"images": images}))


async def reconstruct(request: Request, query: Annotated[Options, Query()]) -> Response:
    """Images through the model and back: what it keeps of them, and how far off that is."""
    media_type = _wanted(request, WRITERS)
    model, _, images = await _read(request, query, ReconstructBody, "images", IMAGE_READERS)
    posterior = await model.encode(images)
    again = await model.decode(posterior.mean)
    error = await _service(request).run(images.size, lambda: _mean_squared_error(images, again))
    model.metrics.reconstructed(error)
    return await _write(
        request, media_type, Answer(model.manifest.reference, {"images": again, "error": error})
    )


async def sample(request: Request, query: Annotated[SampleOptions, Query()]) -> Response:
    """New images from the model's prior.

    The same seed gives the same images on every machine, and the first of n images is the one of n = 1.
    """
    media_type = _wanted(request, WRITERS)
    service, options = _service(request), query
    if request.method == "POST" and (data := await request.body()):
        negotiation.content_type(request.headers.get("content-type"), [JSON])
        options = merge(query, parse(SampleBody, data))
    model = _chosen(service.models, request, options)
    if options.n > service.settings.max_samples:
        raise problems.TooLarge(
            f"n = {options.n} is more than the {service.settings.max_samples} of one request; send several."
        )
    admit(options.n)
    seed = _seed(options.seed)
    latents = await service.run(
        options.n * model.manifest.latent.size,
        lambda: model.prior.sample(seed=seed, rows=range(options.n), temperature=options.temperature),
    )
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(latents)}
    if "latents" in options.return_:
        arrays["latents"] = latents
    return await _write(request, media_type, Answer(model.manifest.reference, arrays, seed))


async def list_models(request: Request) -> Response:
    """The models that are loaded, and what was refused."""
    models = _service(request).models
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
    service = _service(request)
    settings, models = service.settings, service.models
    manifest = _chosen(models, request).manifest
    answer = ModelAnswer(
        model=manifest.reference,
        state="ready",
        versions=models.versions(manifest.name),
        default=manifest.name == models.default,
        limits=Limits.model_validate(settings, from_attributes=True),
        manifest=manifest,
    )
    return _json(answer.model_dump(mode="json"), {"X-Model": manifest.reference})


async def healthz() -> Response:
    """Whether the process is alive."""
    return _json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether it can serve: 503 with the reason while models are being loaded, or when there are none."""
    models = _service(request).models
    return _json({"status": "ready", "models": [model.manifest.reference for model in models.newest()]})


async def show_metrics(request: Request) -> Response:
    """For Prometheus; deploy/README.md lists what is in it."""
    text, media_type = await _service(request).metrics_text(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


async def show_problem(slug: str) -> Response:
    """What a kind of problem means: the page behind `type` in every error."""
    for kind in problems.kinds():
        if kind.slug == slug:
            text = f"{kind.title} ({slug}, status {kind.status})\n\n{inspect.cleandoc(kind.__doc__ or '')}\n"
            return PlainTextResponse(text)
    slugs = ", ".join(sorted({kind.slug for kind in problems.kinds()}))
    raise problems.NotFound(f"There is no problem {slug!r}; there are {slugs}.")


# Each of these in three forms: for the default model, for a model, for one version of it.
COMPUTING = (
    Operation("encode", "POST", "/encode", encode, EncodeAnswer, ARRAY_WRITERS, EncodeBody, IMAGE_READERS),
    Operation("decode", "POST", "/decode", decode, ImagesAnswer, WRITERS, DecodeBody, LATENT_READERS),
    Operation(
        "reconstruct",
        "POST",
        "/reconstruct",
        reconstruct,
        ReconstructAnswer,
        WRITERS,
        ReconstructBody,
        IMAGE_READERS,
    ),
    Operation("sample", "GET", "/sample", sample, SampleAnswer, WRITERS),
    Operation("sample_post", "POST", "/sample", sample, SampleAnswer, WRITERS, SampleBody, (JSON,)),
)
INFORMING = (
    Operation("list_models", "GET", "/models", list_models, ModelsAnswer),
    Operation("show_model", "GET", "/models/{name}", show_model, ModelAnswer),
    Operation("show_version", "GET", "/models/{name}/versions/{version}", show_model, ModelAnswer),
    Operation("healthz", "GET", "/healthz", healthz, Health),
    Operation("readyz", "GET", "/readyz", readyz, Readiness),
)


def add_routes(app: FastAPI) -> None:
    """Every endpoint, with what /docs says about it."""
    operations = [
        replace(operation, name=operation.name + suffix, path=prefix + operation.path)
        for operation in COMPUTING
        for prefix, suffix in (
            ("", ""),
            ("/models/{name}", "_with_model"),
            ("/models/{name}/versions/{version}", "_with_version"),
        )
    ]
    for operation in (*operations, *INFORMING):
        app.add_api_route(
            operation.path,
            operation.endpoint,
            methods=[operation.method],
            operation_id=operation.name,
            **openapi.describe(operation),
        )
    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):
        # As some load balancers ask, and `wget --spider`.
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", show_metrics, include_in_schema=False)
    app.add_api_route("/problems/{slug}", show_problem, include_in_schema=False)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _wanted(request: Request, writers: Iterable[str]) -> str:
    """The media type of the answer: asked first, so that nothing is computed for nobody."""
    return negotiation.negotiate(request.headers.get("accept"), writers)


def _chosen(models: ServedModels, request: Request, options: Options | None = None) -> ServedModel:
    """The model that the path, the query or the body names."""
    path = request.path_params
    reference = "@".join(path[key] for key in ("name", "version") if key in path)
    return models.choose(reference, options.model if options else None)


async def _read(
    request: Request, query: O, kind: type[O], field: str, readers: Mapping[str, Reader]
) -> tuple[ServedModel, O, NDArray[Any]]:
    """The model that is meant, the options, and rows for the model; `field` has the data of a JSON body."""
    service = _service(request)
    header = request.headers.get("content-type")
    media_type = negotiation.content_type(header, readers)
    models = service.models  # without any, nothing is read
    data = await request.body()

    def read(budget: Budget) -> tuple[ServedModel, O, NDArray[Any]]:
        source: Any = data
        options = query
        if media_type == JSON:
            body = parse(kind, data)
            options, source = merge(query, body), getattr(body, field)
        elif media_type == MULTIPART:
            form = read_form(data, header or "", max_files=budget.images)
            options, source = merge(query, schemas.parse_form(type(query), form.fields)), form.files
        model = _chosen(models, request, options)
        return model, options, readers[media_type](source, model.manifest, budget)

    with timed("read"):
        return await service.read(len(data) if media_type in (JSON, MULTIPART) else 0, read)


async def _write(request: Request, media_type: str, answer: Answer) -> Response:
    with timed("write"):
        body = await _service(request).run(answer.values, lambda: WRITERS[media_type](answer))
    headers = {"X-Model": answer.model, "Vary": "Accept"}
    if answer.seed is not None:
        headers["X-Seed"] = str(answer.seed)
    return Response(body, media_type=media_type, headers=headers)


def _seed(given: int | None) -> int:
    """The seed of the request, or a new one that is short enough to be typed again."""
    return secrets.randbits(32) if given is None else given


def _draw(posterior: Posterior, seed: int) -> NDArray[np.float32]:
    """One sample of each row's posterior, float32 [n, *latent]."""
    mean, logvar = posterior
    epsilon = noise(seed, range(len(mean)), mean.shape[1:])
    sample: NDArray[np.float32] = mean + np.exp(logvar * np.float32(0.5)) * epsilon
    return sample


def _mean_squared_error(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """On [0, 1], of each pair of uint8 [h, w, c]; row by row, so that no large float array is made."""
    errors = [
        np.square(a.astype(np.float32) - b).mean() / 255**2 for a, b in zip(images, others, strict=True)
    ]
    return np.array(errors, np.float32)


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), media_type=JSON, headers=headers)
