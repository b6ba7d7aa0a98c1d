"""POST /v2/models/…/infer: tensors in, tensors out."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from service.core import problems
from service.core.metrics import Metrics
from service.core.pool import SMALL_VALUES
from service.core.problems import InvalidRequest
from service.core.service import Service
from service.core.statistics import Executions, Requests
from service.core.trace import seconds, timed
from service.http.endpoint import body, service_of
from service.http.headers import header
from service.oip import tensors
from service.oip.models import Arrays, Function, resolve
from service.oip.tensors import Inference
from service.operations.sample import SAMPLE

HEADER_LENGTH = tensors.HEADER_LENGTH.lower().encode("ascii")


async def infer(request: Request) -> Response:
    """Tensors in, tensors out, in JSON or in binary, each side compressed or not."""
    started = time.perf_counter_ns()
    service = service_of(request)
    function = resolve(service.models, request.path_params)
    counts = statistics_of(request.app).requests(function)
    try:
        with timed("read"):
            inference = await _read(request, service, function)
        async with asyncio.timeout(_deadline(inference.parameters)):
            arrays = await function.run(service, inference)
        with timed("write"):
            response = await _write(request, service, function, inference, arrays)
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
    if function.graph is None:
        rows = len(next(iter(inference.inputs.values())))
        statistics_of(request.app).pipeline(function).add(rows)
    return response


async def _read(request: Request, service: Service, function: Function) -> Inference:
    data = await body(request)
    coding = header(request.scope, b"content-encoding") or ""
    length = header(request.scope, HEADER_LENGTH)
    limits = service.settings
    max_rows = limits.max_samples if function.operation is SAMPLE else limits.max_images

    def read() -> Inference:
        plain = tensors.inflate(data, coding, limits.max_body)
        return tensors.read(plain, length, function.inputs, function.outputs, max_rows)

    # Binary tensors cost nothing to read, unlike text and what is compressed.
    text = int(length) if length and length.isdecimal() and len(length) < 10 else len(data)
    return await service.run(text if not coding else SMALL_VALUES + 1, read)


async def _write(
    request: Request, service: Service, function: Function, inference: Inference, arrays: Arrays
) -> Response:
    head: dict[str, Any] = {"model_name": function.full_name, "model_version": function.version}
    if inference.id is not None:
        head["id"] = inference.id
    coding = tensors.coding(header(request.scope, b"accept-encoding") or "")

    def write() -> tuple[bytes, dict[str, str]]:
        content, headers = tensors.write(head, arrays, function.outputs, inference.outputs)
        if coding and len(content) >= tensors.COMPRESS_FROM:
            content, headers["Content-Encoding"] = tensors.deflate(content, coding), coding
        return content, headers

    values = sum(arrays[name].size for name in inference.outputs)
    content, headers = await service.run(values, write)
    headers |= {"X-Model": function.model.manifest.reference, "Vary": "Accept-Encoding"}
    return Response(content, headers=headers)


def _deadline(parameters: Mapping[str, Any]) -> float | None:
    """Seconds; the protocol has microseconds, and 0 for none."""
    microseconds = parameters.get("timeout", 0)
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequest("The parameter `timeout` must be a whole number of microseconds.")
    return microseconds / 1e6 if microseconds else None


class Statistics:
    """The counters of all models of the protocol, by name and version, made when first needed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[tuple[str, ...], Requests] = {}
        self._pipelines: dict[tuple[str, ...], Executions] = {}

    def requests(self, function: Function) -> Requests:
        if function.labels not in self._requests:
            self._requests[function.labels] = Requests(self._metrics, *function.labels)
        return self._requests[function.labels]

    def pipeline(self, function: Function) -> Executions:
        """The executions of a function of several graphs. As in Triton's ensembles, a request is one."""
        if function.labels not in self._pipelines:
            self._pipelines[function.labels] = Executions(self._metrics, *function.labels)
        return self._pipelines[function.labels]


def statistics_of(app: FastAPI) -> Statistics:
    """The counters of the application."""
    counts: Statistics = app.state.oip_statistics
    return counts
