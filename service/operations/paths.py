"""POST /interpolate, /traverse and /arithmetic: ways through the latent space, decoded."""

from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from service.core.models import Model
from service.core.problems import InvalidRequest, Pointer
from service.http.codecs import ANIMATION_WRITERS, WRITERS, Answer, Floats
from service.http.endpoint import check_rows, kl_of, read, service_of, wanted, write
from service.operations.latent_fields import (
    ArithmeticBody,
    ArithmeticOptions,
    InterpolateBody,
    InterpolateOptions,
    TraverseBody,
    TraverseOptions,
)
from service.operations.points import POINT_READERS, SEVERAL_READERS, check_count, located
from vaeserve.bundle.images import MAX_SIDE


async def interpolate(request: Request, query: Annotated[InterpolateOptions, Query()]) -> Response:
    """Frames from one image or latent to another: a strip, an animation, or arrays."""
    media_type = wanted(request, ANIMATION_WRITERS)
    model, options, points = await read(request, query, InterpolateBody, None, SEVERAL_READERS)
    check_count(points, 2, 2)
    check_rows(service_of(request), options.n, "n")
    (start, end), _ = await located(model, points)
    steps = np.linspace(0, 1, options.n)
    latents = (slerp if options.method == "slerp" else lerp)(start, end, steps)
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(latents)}
    if "latents" in options.return_:
        arrays["latents"] = latents
    # One strip, if a JPEG can be as wide.
    columns = min(options.n, MAX_SIDE // (model.manifest.image.width + 2))
    answer = Answer(model.manifest.reference, arrays, columns=columns, duration=options.duration)
    return await write(request, media_type, answer)


async def traverse(request: Request, query: Annotated[TraverseOptions, Query()]) -> Response:
    """What single dimensions do: a grid, each row of which changes one dimension of one image or latent."""
    media_type = wanted(request, WRITERS)
    model, options, points = await read(request, query, TraverseBody, None, POINT_READERS)
    check_count(points, 0, 1)
    dimensions = _dimensions(model, options)
    check_rows(service_of(request), len(dimensions) * options.n, "dimensions × n")
    shape = model.manifest.latent.shape
    start = (await located(model, points))[0] if len(points) else np.zeros((1, *shape), np.float32)
    values = np.linspace(-options.extent, options.extent, options.n, dtype=np.float32)
    flat = np.repeat(start.reshape(1, -1), len(dimensions) * options.n, axis=0)
    flat[np.arange(len(flat)), np.repeat(dimensions, options.n)] = np.tile(values, len(dimensions))
    images = await model.decode(flat.reshape(len(flat), *shape))
    arrays: dict[str, NDArray[Any]] = {"images": images, "dimensions": dimensions, "values": values}
    return await write(request, media_type, Answer(model.manifest.reference, arrays, columns=options.n))


async def arithmetic(request: Request, query: Annotated[ArithmeticOptions, Query()]) -> Response:
    """A weighted sum of images and latents, decoded: a - b + c."""
    media_type = wanted(request, WRITERS)
    model, options, points = await read(request, query, ArithmeticBody, None, POINT_READERS)
    check_count(points, 1)
    weights = np.full(len(points), 1 / len(points)) if options.weights is None else np.array(options.weights)
    if len(weights) != len(points):
        raise _refused("weights", f"has {len(weights)} numbers for {len(points)} points; give one for each")
    places, _ = await located(model, points)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.tensordot(weights, places.astype(np.float64), axes=1)[np.newaxis].astype(np.float32)
    if not np.isfinite(total).all():
        raise _refused("weights", "make a sum that is not finite as float32; take smaller ones")
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(total), "latents": total}
    return await write(request, media_type, Answer(model.manifest.reference, arrays))


def lerp(start: Floats, end: Floats, steps: NDArray[np.float64]) -> Floats:
    """The straight line between two latents at `steps` from 0 to 1, float32 [len(steps), *latent]."""
    at = steps.reshape(-1, *([1] * start.ndim))
    line: Floats = ((1 - at) * start + at * end).astype(np.float32)
    return line


def slerp(start: Floats, end: Floats, steps: NDArray[np.float64]) -> Floats:
    """The arc between two latents (Shoemake 1985), on which the distance from the origin changes evenly.

    Latents of many dimensions lie in a shell around the origin; a straight line leaves it. Where there is no
    arc, between opposite or parallel latents or from the origin, the line is taken.
    """
    lengths = [float(np.linalg.norm(each.astype(np.float64))) for each in (start, end)]
    if min(lengths) == 0:
        return lerp(start, end, steps)
    directions = [each / length for each, length in zip((start, end), lengths, strict=True)]
    angle = float(np.arccos(np.clip(np.vdot(*directions), -1, 1)))
    if np.sin(angle) < 1e-6:
        return lerp(start, end, steps)
    at = steps.reshape(-1, *([1] * start.ndim))
    arc = (np.sin((1 - at) * angle) * directions[0] + np.sin(at * angle) * directions[1]) / np.sin(angle)
    along: Floats = (arc * ((1 - at) * lengths[0] + at * lengths[1])).astype(np.float32)
    return along


def _dimensions(model: Model, options: TraverseOptions) -> NDArray[np.int64]:
    """Those that are asked for, or those with the highest KL, the highest first."""
    if options.dimensions is None:
        return np.argsort(-np.array(kl_of(model)), kind="stable")[: options.top]
    size = model.manifest.latent.size
    if wrong := [each for each in options.dimensions if each >= size]:
        raise _refused(
            "dimensions", f"has {wrong[0]}; {model.manifest.reference} has the dimensions 0 to {size - 1}"
        )
    return np.array(options.dimensions, np.int64)


def _refused(option: str, detail: str) -> InvalidRequest:
    return InvalidRequest(
        f"`{option}` {detail}.", errors=[Pointer(pointer=f"/{option}", location="body", detail=detail)]
    )
