"""The endpoints. Each names the hops of a request: read → batcher → engine → write.

Those that compute exist in three forms: `/encode`, `/models/{name}/encode` and
`/models/{name}/versions/{version}/encode`, all of them one function.
"""

import inspect
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response
from numpy.typing import NDArray

from service.core import problems
from service.core.admission import admit
from service.core.problems import Pointer
from service.core.service import ServedModel
from service.http import caching, negotiation, openapi
from service.http.codecs import (
    ANIMATION_WRITERS,
    ARRAY_WRITERS,
    IMAGE_READERS,
    LATENT_READERS,
    WRITERS,
    Answer,
)
from service.http.endpoint import chosen, kl_of, read, seed_of, service_of, wanted, write
from service.http.negotiation import JSON
from service.http.openapi import Operation
from service.operations.fields import (
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
from service.operations.latent_fields import (
    ArithmeticAnswer,
    ArithmeticBody,
    InterpolateAnswer,
    InterpolateBody,
    MapAnswer,
    ScoreAnswer,
    ScoreBody,
    SimilarityAnswer,
    SimilarityBody,
    TraverseAnswer,
    TraverseBody,
)
from service.operations.map import MAP_WRITERS, show_map
from service.operations.paths import arithmetic, interpolate, traverse
from service.operations.points import POINT_READERS, SEVERAL_READERS
from service.operations.score import score_images
from service.operations.similarity import similarity
from vaeserve.bundle.prior import Prior
from vaeserve.bundle.scores import squared_error

ACTIVE = 0.01  # nats of mean KL from which on a dimension counts as used


async def encode(request: Request, query: Annotated[EncodeOptions, Query()]) -> Response:
    """Images to latents: the mean of each image's posterior.

    `return` asks for the log-variance and for a sample as well. Image files of any size and mode are fitted
    to the model's size; arrays must have it.
    """
    media_type = wanted(request, ARRAY_WRITERS)
    model, options, images = await read(request, query, EncodeBody, "images", IMAGE_READERS)
    posterior = await model.encode(images)
    arrays: dict[str, NDArray[Any]] = posterior._asdict()
    seed = None
    if "sample" in options.return_:
        seed = seed_of(options.seed)
        sampling = partial(posterior.sample, seed)
        arrays["sample"] = await service_of(request).run(posterior.mean.size, sampling)
    if "kl" in options.return_:
        arrays["kl"] = posterior.kl().astype(np.float32)
    if "active" in options.return_:
        arrays["active"] = np.reshape(kl_of(model), posterior.mean.shape[1:]) > ACTIVE
    asked = {str(name): arrays[name] for name in options.return_}
    return await write(request, media_type, Answer(model.manifest.reference, asked, seed))


async def decode(request: Request, query: Annotated[Options, Query()]) -> Response:
    """Latents to images."""
    media_type = wanted(request, WRITERS)
    model, _, latents = await read(request, query, DecodeBody, "latents", LATENT_READERS)
    images = await model.decode(latents)
    return await write(request, media_type, Answer(model.manifest.reference, {"images": images}))


async def reconstruct(request: Request, query: Annotated[Options, Query()]) -> Response:
    """Images through the model and back: what it keeps of them, and how far off that is."""
    media_type = wanted(request, WRITERS)
    model, _, images = await read(request, query, ReconstructBody, "images", IMAGE_READERS)
    posterior = await model.encode(images)
    again = await model.decode(posterior.mean)
    error = await service_of(request).run(images.size, lambda: squared_error(images, again))
    model.metrics.reconstructed(error)
    return await write(
        request, media_type, Answer(model.manifest.reference, {"images": again, "error": error})
    )


async def sample(request: Request, query: Annotated[SampleOptions, Query()]) -> Response:
    """New images from the model's prior.

    The same seed gives the same images on every machine, and the first of n images is the one of n = 1. With
    `first` they are the n images from there on.
    """
    media_type = wanted(request, WRITERS)
    service, options = service_of(request), query
    if request.method == "POST" and (data := await request.body()):
        negotiation.content_type(request.headers.get("content-type"), [JSON])
        options = merge(query, parse(SampleBody, data))
    model = chosen(service.models, request, options)
    if options.n > service.settings.max_samples:
        raise problems.TooLarge(
            f"n = {options.n} is more than the {service.settings.max_samples} of one request; send several."
        )
    if (prior := model.prior) is None:
        raise problems.NoPrior(
            f"{model.manifest.reference} has no prior to sample from; send latents of your own to /decode."
        )
    seed, label = seed_of(options.seed), _label(request, model, prior, options)
    keeping: dict[str, str] = {}
    if request.method == "GET" and options.seed is not None:
        pinned = caching.names_version(request, options.model)
        tag = caching.etag(model, media_type, options.model_dump(exclude={"model"}))
        if answer := caching.not_modified(request, tag, model, pinned=pinned):
            return answer
        keeping = caching.headers(tag, pinned=pinned)
    admit(options.n)
    drawn = await service.run(
        options.n * model.manifest.latent.size,
        lambda: prior.sample(
            seed=seed,
            rows=range(options.first, options.first + options.n),
            temperature=options.temperature,
            kind=options.prior,
            label=label,
            truncation=options.truncation,
            transform=False,
        ),
    )
    latents = await model.transform(drawn, prior.resolve(options.prior, label))
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(latents)}
    if "latents" in options.return_:
        arrays["latents"] = latents
    response = await write(request, media_type, Answer(model.manifest.reference, arrays, seed))
    response.headers.update(keeping)
    return response


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
    manifest = chosen(models, request).manifest
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
    """Look for new versions now instead of at the next poll; the answer is what is loaded then."""
    await service_of(request).load()
    return await show_model(request)


async def healthz(request: Request) -> Response:
    """Whether the process is alive: 503 when its models have been stuck at one batch for too long."""
    service_of(request).check_alive()
    return _json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether it can serve: 503 with the reason while it is starting or stopping, or has no models."""
    service = service_of(request)
    if service.draining:
        raise problems.Draining("The service is stopping; send requests to another replica.")
    service.check_alive()
    models = service.models
    return _json({"status": "ready", "models": [model.manifest.reference for model in models.newest()]})


async def show_metrics(request: Request) -> Response:
    """For Prometheus; deploy/README.md lists what is in it."""
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
    Operation("score", "POST", "/score", score_images, ScoreAnswer, WRITERS, ScoreBody, IMAGE_READERS),
    Operation(
        "interpolate",
        "POST",
        "/interpolate",
        interpolate,
        InterpolateAnswer,
        ANIMATION_WRITERS,
        InterpolateBody,
        SEVERAL_READERS,
    ),
    Operation(
        "traverse", "POST", "/traverse", traverse, TraverseAnswer, WRITERS, TraverseBody, POINT_READERS
    ),
    Operation(
        "arithmetic",
        "POST",
        "/arithmetic",
        arithmetic,
        ArithmeticAnswer,
        WRITERS,
        ArithmeticBody,
        POINT_READERS,
    ),
    Operation(
        "similarity",
        "POST",
        "/similarity",
        similarity,
        SimilarityAnswer,
        ARRAY_WRITERS,
        SimilarityBody,
        SEVERAL_READERS,
    ),
)
INFORMING = (
    Operation("list_models", "GET", "/models", list_models, ModelsAnswer),
    Operation("show_model", "GET", "/models/{name}", show_model, ModelAnswer),
    Operation("show_version", "GET", "/models/{name}/versions/{version}", show_model, ModelAnswer),
    Operation("show_map", "GET", "/models/{name}/map", show_map, MapAnswer, MAP_WRITERS),
    Operation(
        "show_version_map",
        "GET",
        "/models/{name}/versions/{version}/map",
        show_map,
        MapAnswer,
        MAP_WRITERS,
    ),
    Operation("healthz", "GET", "/healthz", healthz, Health),
    Operation("readyz", "GET", "/readyz", readyz, Readiness),
)


def computing() -> list[Operation]:
    """Those that compute, in all their forms."""
    return [
        replace(operation, name=operation.name + suffix, path=prefix + operation.path)
        for operation in COMPUTING
        for prefix, suffix in (
            ("", ""),
            ("/models/{name}", "_with_model"),
            ("/models/{name}/versions/{version}", "_with_version"),
        )
    ]


def add_routes(app: FastAPI) -> None:
    """Every endpoint, with what /docs says about it."""
    for operation in (*computing(), *INFORMING):
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
    if app.state.service.settings.keys():  # what changes the service's state is not for everybody
        reload = Operation("reload_model", "POST", "/models/{name}/reload", reload_model, ModelAnswer)
        app.add_api_route(
            reload.path,
            reload_model,
            methods=[reload.method],
            operation_id=reload.name,
            **openapi.describe(reload),
        )
    app.add_api_route("/metrics", show_metrics, include_in_schema=False)
    app.add_api_route("/problems/{slug}", show_problem, include_in_schema=False)


def _label(request: Request, model: ServedModel, prior: Prior, options: SampleOptions) -> int | None:
    """The number of the label to sample, given by name or by number; a problem if the model cannot."""

    def refused(name: str, detail: str) -> problems.InvalidRequest:
        location = "query" if name in request.query_params else "body"
        pointer = Pointer(pointer=f"/{name}", location=location, detail=detail)
        return problems.InvalidRequest(f"{detail}.", errors=[pointer])

    wanted = options.label
    reference, names = model.manifest.reference, model.manifest.labels or ()
    if options.prior and options.prior not in prior.kinds:
        kinds = ", ".join(prior.kinds)
        raise refused("prior", f"{reference} has no prior {options.prior!r}; it has {kinds}")
    if wanted is None:
        return None
    if options.prior not in (None, "mixture"):
        raise refused("label", f"{options.prior!r} knows no labels; leave out `prior`")
    if not prior.by_label:
        raise refused("label", f"{reference} cannot sample by label: it was published without")
    if wanted in names:
        number = names.index(wanted)
    else:
        number = int(wanted) if wanted.isascii() and wanted.isdecimal() else -1
    if number not in prior.by_label:
        known = ", ".join(names[each] for each in sorted(prior.by_label)[:20])
        raise refused("label", f"{reference} cannot sample the label {wanted!r}; there are {known}")
    return number


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), media_type=JSON, headers=headers)
