"""The Open Inference Protocol (v2, REST) at /v2: what Triton, KServe and MLServer speak, for their clients.

A model of that protocol has one set of inputs and outputs, so one VAE appears as several: `mnist.encode`,
`mnist.decode`, `mnist.reconstruct` and `mnist.sample`, over the same batchers as the other routes. Tensors
are called what the graphs call them. docs/oip.md has the details for people.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response

from service.core import problems
from service.core.metrics import Metrics
from service.core.models import Models
from service.core.pool import SMALL_VALUES
from service.core.problems import InvalidRequest, UnknownModel
from service.core.service import Service
from service.core.statistics import Executions, Requests, shown
from service.core.trace import seconds, timed
from service.http.endpoint import body
from service.http.headers import header
from service.oip import tensors
from service.oip.models import FUNCTIONS, Arrays, Chosen, Specs, choose, every
from service.oip.tensors import Inference

EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration", "statistics", "parameters"]
HEADER_LENGTH = tensors.HEADER_LENGTH.lower().encode("ascii")
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"

# --- infer ------------------------------------------------------------------------------------------------


async def infer(request: Request) -> Response:
    """Tensors in, tensors out, in JSON or in binary, each side compressed or not."""
    started = time.perf_counter_ns()
    service: Service = request.app.state.service
    chosen = choose(service.models, request.path_params)
    counts = _statistics(request.app).requests(chosen)
    try:
        with timed("read"):
            asked = await _read(request, service, chosen)
        async with asyncio.timeout(_deadline(asked.parameters)):
            arrays = await chosen.function.run(service, chosen.served, asked)
        with timed("write"):
            response = await _write(request, service, chosen, asked, arrays)
    except BaseException as error:
        counts.failed(time.perf_counter_ns() - started)
        if isinstance(error, TimeoutError):
            raise problems.Timeout("The request's own `timeout` passed; give it more microseconds.") from None
        raise
    counts.succeeded(
        success=time.perf_counter_ns() - started,
        queue=round(seconds("queue") * 1e9),
        compute_input=round(seconds("read") * 1e9),
        compute_infer=round(seconds("model") * 1e9),
        compute_output=round(seconds("write") * 1e9),
    )
    if chosen.function.graph is None:
        rows = len(next(iter(asked.inputs.values())))
        _statistics(request.app).pipeline(chosen).add(rows, round(seconds("model") * 1e9))
    return response


async def _read(request: Request, service: Service, chosen: Chosen) -> Inference:
    data = await body(request)
    coding = header(request.scope, b"content-encoding") or ""
    length = header(request.scope, HEADER_LENGTH)
    limits = service.settings
    max_rows = limits.max_samples if chosen.name == "sample" else limits.max_images

    def read() -> Inference:
        plain = tensors.inflate(data, coding, limits.max_body)
        return tensors.read(plain, length, chosen.inputs, chosen.outputs, max_rows)

    # Bytes that are numbers already cost nothing to read, unlike text and what is compressed.
    text = int(length) if length and length.isdecimal() and len(length) < 10 else len(data)
    return await service.run(text if not coding else SMALL_VALUES + 1, read)


async def _write(
    request: Request, service: Service, chosen: Chosen, asked: Inference, arrays: Arrays
) -> Response:
    head: dict[str, Any] = {"model_name": chosen.full_name, "model_version": chosen.version}
    if asked.id is not None:
        head["id"] = asked.id
    coding = tensors.coding(header(request.scope, b"accept-encoding") or "")

    def write() -> tuple[bytes, dict[str, str]]:
        content, headers = tensors.write(head, arrays, chosen.outputs, asked.outputs)
        if coding and len(content) >= tensors.COMPRESS_FROM:
            content, headers["Content-Encoding"] = tensors.deflate(content, coding), coding
        return content, headers

    values = sum(arrays[name].size for name in asked.outputs)
    content, headers = await service.run(values, write)
    headers |= {"X-Model": chosen.served.manifest.reference, "Vary": "Accept-Encoding"}
    return Response(content, headers=headers)


def _deadline(parameters: Mapping[str, Any]) -> float | None:
    """Seconds; the protocol has microseconds, and 0 for none."""
    microseconds = parameters.get("timeout", 0)
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequest("The parameter `timeout` must be a whole number of microseconds.")
    return microseconds / 1e6 if microseconds else None


# --- what there is ----------------------------------------------------------------------------------------


async def live(request: Request) -> Response:
    """Whether the process is alive."""
    return _json({"live": True})


async def ready(request: Request) -> Response:
    """Whether it can serve: 503 while it has no models, or is stopping."""
    service: Service = request.app.state.service
    if service.draining:
        raise problems.Draining("The service is stopping; send requests to another replica.")
    _ = service.models
    return _json({"live": True, "ready": True})  # the specification's text and its example differ


async def server(request: Request) -> Response:
    """What this server is, and which extensions it has."""
    return _json({"name": "vaeserve", "version": version("vaeserve"), "extensions": EXTENSIONS})


async def models(request: Request) -> Response:
    """The names of all models, as KServe lists them."""
    return _json({"models": list(dict.fromkeys(each.full_name for each in every(_models(request))))})


async def model_ready(request: Request) -> Response:
    """Whether a model is loaded: 404 if not."""
    chosen = choose(_models(request), request.path_params)
    return _json({"name": chosen.full_name, "ready": True})


async def metadata(request: Request) -> Response:
    """Names, types and shapes of a model's tensors; -1 is the number of rows."""
    chosen = choose(_models(request), request.path_params)

    def described(specs: Specs) -> list[dict[str, Any]]:
        return [{"name": s.name, "datatype": s.datatype, "shape": [-1, *s.row]} for s in specs]

    versions = _models(request).versions(chosen.served.manifest.name)
    return _json(
        {
            "name": chosen.full_name,
            "versions": [str(number) for number in versions],
            "platform": PLATFORM,
            "inputs": described(chosen.inputs),
            "outputs": described(chosen.outputs),
        }
    )


async def config(request: Request) -> Response:
    """The same as Triton's configuration of a model, where dimensions leave the rows out."""
    chosen = choose(_models(request), request.path_params)
    versions = _models(request).versions(chosen.served.manifest.name)
    limits = request.app.state.service.settings

    def described(specs: Specs) -> list[dict[str, Any]]:
        return [{"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": s.row} for s in specs]

    return _json(
        {
            "name": chosen.full_name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "version_policy": {"specific": {"versions": [int(each) for each in versions]}},
            "max_batch_size": limits.max_samples if chosen.name == "sample" else limits.max_images,
            "input": described(chosen.inputs),
            "output": described(chosen.outputs),
            "dynamic_batching": {"max_queue_delay_microseconds": 0},  # the batcher never waits for company
        }
    )


async def statistics(request: Request) -> Response:
    """What was counted since the service started, of one model or of all."""
    path = request.path_params
    chosen = [choose(_models(request), path)] if path else every(_models(request))
    service: Service = request.app.state.service
    counts = await service.oip_counts()
    told = [
        {
            "name": each.full_name,
            "version": each.version,
            **shown(counts, each.labels, (*each.labels[:2], each.function.graph or each.name)),
        }
        for each in chosen
    ]
    return _json({"model_stats": told})


async def index(request: Request) -> Response:
    """All models, those too that were refused. The body may be empty, or {"ready": true}."""
    asked = await _asked(request)
    models = _models(request)
    listed = [
        {"name": each.full_name, "version": each.version, "state": "READY", "reason": ""}
        for each in every(models)
    ]
    if not asked.get("ready"):
        listed += [
            {
                "name": f"{PurePath(path).parent.name}.{function}",
                "version": PurePath(path).name,
                "state": "UNAVAILABLE",
                "reason": reason,
            }
            for path, reason in sorted(models.refused.items())
            for function in FUNCTIONS
        ]
    return _json(listed)


async def load(request: Request) -> Response:
    """Take up what lies in the repository now, and answer once the model is served. Only with an API key."""
    name = request.path_params["name"]
    parameters = (await _asked(request)).get("parameters") or {}
    if parameters:
        raise InvalidRequest("Models come from the repository's folder alone; leave out `parameters`.")
    service: Service = request.app.state.service
    await service.load()
    if _vae(name) not in service.models.loaded:
        refused = [
            why for path, why in service.models.refused.items() if PurePath(path).parent.name == _vae(name)
        ]
        raise UnknownModel(f"There is no model {name[:80]!r} in the repository{': '.join(['', *refused])}.")
    return _json({})


async def unload(request: Request) -> Response:
    """Always refused: a model is served as long as it lies in the repository."""
    raise InvalidRequest("A model is unloaded by taking its folder out of the repository; then load another.")


class Statistics:
    """The counters of all models of the protocol, by name and version; made when first needed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[tuple[str, ...], Requests] = {}
        self._pipelines: dict[tuple[str, ...], Executions] = {}

    def requests(self, chosen: Chosen) -> Requests:
        if chosen.labels not in self._requests:
            self._requests[chosen.labels] = Requests(self._metrics, *chosen.labels)
        return self._requests[chosen.labels]

    def pipeline(self, chosen: Chosen) -> Executions:
        """Of what is no one graph; as in Triton's ensembles, a request is one execution."""
        if chosen.labels not in self._pipelines:
            self._pipelines[chosen.labels] = Executions(self._metrics, *chosen.labels)
        return self._pipelines[chosen.labels]


Route = tuple[str, str, Callable[[Request], Awaitable[Response]]]

MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
COMPUTING: tuple[Route, ...] = tuple(("POST", f"{model}/infer", infer) for model in MODEL)
# Not in /openapi.json: the protocol has a specification of its own.
ROUTES: tuple[Route, ...] = (
    *COMPUTING,
    ("GET", "/v2", server),
    ("GET", "/v2/health/live", live),
    ("GET", "/v2/health/ready", ready),
    ("GET", "/v2/models", models),
    ("GET", "/v2/models/stats", statistics),  # before a model of that name could be meant, which there is not
    *(("GET", model, metadata) for model in MODEL),
    *(("GET", f"{model}/ready", model_ready) for model in MODEL),
    *(("GET", f"{model}/config", config) for model in MODEL),
    *(("GET", f"{model}/stats", statistics) for model in MODEL),
    ("POST", "/v2/repository/index", index),
)

# These change what is served, so they are not there for everybody.
CHANGING = (
    ("POST", "/v2/repository/models/{name}/load", load),
    ("POST", "/v2/repository/models/{name}/unload", unload),
)


def add_routes(app: FastAPI) -> None:
    """Everything under /v2. As plain routes: nothing in them is for FastAPI to read."""
    service: Service = app.state.service
    app.state.oip_statistics = Statistics(service.metrics)
    for method, path, endpoint in ROUTES + (CHANGING if service.settings.keys() else ()):
        app.add_route(path, endpoint, methods=[method], include_in_schema=False)


async def _asked(request: Request) -> dict[str, Any]:
    """The JSON object of a body, which may be left out."""
    data = await request.body()
    try:
        asked = orjson.loads(data) if data.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request is no JSON ({error}); leave it empty.") from None
    if not isinstance(asked, dict):
        raise InvalidRequest("The request is no JSON object; leave it empty.")
    return asked


def _vae(name: str) -> str:
    """The VAE's own name: what changes state is about all of its functions."""
    vae, _, function = name.rpartition(".")
    return vae if function in FUNCTIONS else name


def _models(request: Request) -> Models:
    service: Service = request.app.state.service
    return service.models


def _statistics(app: FastAPI) -> Statistics:
    counts: Statistics = app.state.oip_statistics
    return counts


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
