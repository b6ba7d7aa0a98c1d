"""POST /similarity: how alike the images and latents of a request are, measured in the latent space."""

from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from service.core.problems import InvalidRequest, Pointer
from service.http.codecs import ARRAY_WRITERS, Answer, Floats
from service.http.endpoint import read, service_of, wanted, write
from service.operations.latent_fields import SimilarityBody, SimilarityOptions
from service.operations.points import SEVERAL_READERS, check_count, located
from vaeserve.bundle.engine import Posterior

Doubles = NDArray[np.float64]


async def similarity(request: Request, query: Annotated[SimilarityOptions, Query()]) -> Response:
    """How alike images and latents are: all pairs, and the nearest ones of each."""
    media_type = wanted(request, ARRAY_WRITERS)
    model, options, points = await read(request, query, SimilarityBody, None, SEVERAL_READERS)
    check_count(points, 2)
    if options.metric != "cosine" and points.latents is not None:
        detail = f"{options.metric} compares posteriors, which latents alone have none of; send images"
        raise InvalidRequest(
            f"{detail}.", errors=[Pointer(pointer="/latents", location="body", detail=detail)]
        )
    if options.top is not None and options.top >= len(points):
        detail = f"is {options.top}; of {len(points)} points each has {len(points) - 1} others"
        raise InvalidRequest(
            f"`top` {detail}.", errors=[Pointer(pointer="/top", location="body", detail=detail)]
        )
    places, posterior = await located(model, points)
    compare = partial(matrix, options.metric, places, posterior)
    found = await service_of(request).run(len(points) * places.size, compare)
    arrays: dict[str, NDArray[Any]] = {"matrix": found.astype(np.float32)}
    if options.top is not None:
        arrays |= _nearest(found, options.top, largest=options.metric == "cosine")
    fields = {"metric": options.metric}
    return await write(request, media_type, Answer(model.manifest.reference, arrays, fields=fields))


def matrix(metric: str, places: Floats, posterior: Posterior | None) -> Doubles:
    """All pairs of n points by `metric`, float64 [n, n], symmetric to the bit; see docs/latent-space.md."""
    mean = places.reshape(len(places), -1).astype(np.float64)
    if metric == "cosine" or posterior is None:
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        unit = mean / np.where(lengths == 0, 1, lengths)  # the origin is like nothing
        product = unit @ unit.T
        return np.clip((product + product.T) / 2, -1, 1)
    variance = np.exp(posterior.logvar.reshape(len(places), -1).astype(np.float64))
    # Row by row: all differences at once would be n times as large as the request.
    row = _mahalanobis if metric == "mahalanobis" else _symmetric_kl
    pairs = np.stack([row(mean, variance, each) for each in range(len(mean))])
    upper = np.triu(pairs, 1)
    return upper + upper.T


def _mahalanobis(mean: Doubles, variance: Doubles, i: int) -> Doubles:
    """Distance of the means under the average of the two covariances."""
    distance: Doubles = np.sqrt((np.square(mean - mean[i]) / ((variance + variance[i]) / 2)).sum(axis=1))
    return distance


def _symmetric_kl(mean: Doubles, variance: Doubles, i: int) -> Doubles:
    """(KL(a‖b) + KL(b‖a)) / 2 in nats; the logarithms cancel."""
    square = np.square(mean - mean[i])
    there, back = (variance + square) / variance[i], (variance[i] + square) / variance
    divergence: Doubles = 0.25 * (there + back - 2).sum(axis=1)
    return divergence


def _nearest(found: Doubles, top: int, *, largest: bool) -> dict[str, NDArray[Any]]:
    """The `top` most alike others of each point, itself never among them."""
    order = -found if largest else found.copy()
    np.fill_diagonal(order, np.inf)
    nearest = np.argsort(order, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(found, nearest, axis=1)
    return {"nearest": nearest, "nearest_values": values.astype(np.float32)}
