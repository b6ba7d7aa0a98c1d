"""The Open Inference Protocol (v2, REST) at /v2, for the clients of Triton, KServe and MLServer.

A model of that protocol has one set of inputs and outputs, so one VAE appears as several, one for each
operation: `mnist.encode`, `mnist.decode` and so on. docs/oip.md describes them.
"""

from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response

from service.core.models import Models
from service.core.problems import InvalidRequest, UnknownModel
from service.core.statistics import shown
from service.http.endpoint import service_of
from service.http.router import Route
from service.oip.infer import Statistics, infer
from service.oip.models import OPERATIONS, Specs, all_functions, resolve
from service.operations.sample import SAMPLE

EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration", "statistics", "parameters"]
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"


async def live(request: Request) -> Response:
    """Whether the process is alive."""
    return _json({"live": True})


async def ready(request: Request) -> Response:
    """Whether it can serve: 503 while it has no models, or is stopping."""
    service_of(request).check_ready()
    return _json({"live": True, "ready": True})  # the specification's text and its example differ


async def server(request: Request) -> Response:
    """What this server is, and which extensions it has."""
    return _json({"name": "vaeserve", "version": version("vaeserve"), "extensions": EXTENSIONS})


async def models(request: Request) -> Response:
    """The names of all models, as KServe lists them."""
    return _json({"models": list(dict.fromkeys(each.full_name for each in all_functions(_models(request))))})


async def model_ready(request: Request) -> Response:
    """Whether a model is loaded: 404 if not."""
    function = resolve(_models(request), request.path_params)
    return _json({"name": function.full_name, "ready": True})


async def metadata(request: Request) -> Response:
    """Names, types and shapes of a model's tensors; -1 is the number of rows."""
    function = resolve(_models(request), request.path_params)

    def described(specs: Specs) -> list[dict[str, Any]]:
        return [{"name": s.name, "datatype": s.datatype, "shape": [-1, *s.row]} for s in specs]

    versions = _models(request).versions(function.model.manifest.name)
    return _json(
        {
            "name": function.full_name,
            "versions": [str(number) for number in versions],
            "platform": PLATFORM,
            "inputs": described(function.inputs),
            "outputs": described(function.outputs),
        }
    )


async def config(request: Request) -> Response:
    """The same as Triton's configuration of a model, where dimensions leave the rows out."""
    function = resolve(_models(request), request.path_params)
    versions = _models(request).versions(function.model.manifest.name)
    limits = service_of(request).settings

    def described(specs: Specs) -> list[dict[str, Any]]:
        return [{"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": s.row} for s in specs]

    return _json(
        {
            "name": function.full_name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "version_policy": {"specific": {"versions": [int(each) for each in versions]}},
            "max_batch_size": limits.max_samples if function.operation is SAMPLE else limits.max_images,
            "input": described(function.inputs),
            "output": described(function.outputs),
            "dynamic_batching": {"max_queue_delay_microseconds": 0},  # the batcher never waits for company
        }
    )


async def statistics(request: Request) -> Response:
    """What was counted since the service started, of one model or of all."""
    path = request.path_params
    functions = [resolve(_models(request), path)] if path else all_functions(_models(request))
    service = service_of(request)
    counts = await service.oip_counts()
    counted = [
        {
            "name": each.full_name,
            "version": each.version,
            **shown(counts, each.labels, (*each.labels[:2], each.graph or each.operation.name)),
        }
        for each in functions
    ]
    return _json({"model_stats": counted})


async def index(request: Request) -> Response:
    """All models, those too that were refused. The body may be empty, or {"ready": true}."""
    asked = await _asked(request)
    models = _models(request)
    listed = [
        {"name": each.full_name, "version": each.version, "state": "READY", "reason": ""}
        for each in all_functions(models)
    ]
    if not asked.get("ready"):
        listed += [
            {
                "name": f"{PurePath(path).parent.name}.{operation}",
                "version": PurePath(path).name,
                "state": "UNAVAILABLE",
                "reason": reason,
            }
            for path, reason in sorted(models.refused.items())
            for operation in OPERATIONS
        ]
    return _json(listed)


async def load(request: Request) -> Response:
    """Reload the repository, and answer once the model is loaded. Needs an API key."""
    name = request.path_params["name"]
    parameters = (await _asked(request)).get("parameters") or {}
    if parameters:
        raise InvalidRequest("Models come from the repository's folder alone; leave out `parameters`.")
    service = service_of(request)
    await service.load()
    if _vae(name) not in service.models.loaded:
        refused = [
            why for path, why in service.models.refused.items() if PurePath(path).parent.name == _vae(name)
        ]
        raise UnknownModel(f"There is no model {name[:80]!r} in the repository{': '.join(['', *refused])}.")
    return _json({})


async def unload(request: Request) -> Response:
    """Always refused: a model is served as long as it is in the repository."""
    raise InvalidRequest("A model is unloaded by taking its folder out of the repository; then load another.")


MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
INFER = [Route("POST", f"{model}/infer", infer) for model in MODEL]
# Not in /openapi.json: the protocol has a specification of its own.
ROUTES = (
    *INFER,
    Route("GET", "/v2", server),
    Route("GET", "/v2/health/live", live),
    Route("GET", "/v2/health/ready", ready),
    Route("GET", "/v2/models", models),
    Route("GET", "/v2/models/stats", statistics),  # before a model of that name, which there cannot be
    *(Route("GET", model, metadata) for model in MODEL),
    *(Route("GET", f"{model}/ready", model_ready) for model in MODEL),
    *(Route("GET", f"{model}/config", config) for model in MODEL),
    *(Route("GET", f"{model}/stats", statistics) for model in MODEL),
    Route("POST", "/v2/repository/index", index),
)
# These change what is served, so they are there only if API keys are configured.
CHANGING = (
    Route("POST", "/v2/repository/models/{name}/load", load),
    Route("POST", "/v2/repository/models/{name}/unload", unload),
)


def add_routes(app: FastAPI) -> None:
    """Everything under /v2. As plain routes: FastAPI has nothing to parse in them."""
    service = app.state.service
    app.state.oip_statistics = Statistics(service.metrics)
    for route in ROUTES + (CHANGING if service.settings.keys() else ()):
        app.add_route(route.path, route.endpoint, methods=[route.method], include_in_schema=False)


async def _asked(request: Request) -> dict[str, Any]:
    """The JSON object of a body, which may be left out."""
    data = await request.body()
    try:
        asked = orjson.loads(data) if data.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request is not JSON ({error}); leave it empty.") from None
    if not isinstance(asked, dict):
        raise InvalidRequest("The request is not a JSON object; leave it empty.")
    return asked


def _vae(name: str) -> str:
    """The VAE's own name: what changes state is about all of its functions."""
    vae, _, function = name.rpartition(".")
    return vae if function in OPERATIONS else name


def _models(request: Request) -> Models:
    return service_of(request).models


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
