"""How alike images and latents are, measured in the latent space."""

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.models import Model
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE
from service.operations.fields import refuse
from service.operations.operation import Example, Inputs, Operation, Outputs
from service.operations.points import Points, check_count, encode_points
from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.posterior import Posterior

Metric = Literal["cosine", "mahalanobis", "symmetric_kl"]


class SimilarityOptions(fields.Options):
    """Query parameters of /similarity."""

    metric: Metric = Field(
        "cosine",
        description="`cosine` of the means, 1 is alike; or a distance of the posteriors, 0 is alike: "
        "`mahalanobis` of their means in units of the average deviation, or their `symmetric_kl` in nats.",
    )
    top: int | None = Field(
        None, ge=1, description="Adds this many of the most similar others of each point."
    )


class SimilarityAnswer(fields.Result):
    """All pairs of points, and the most similar others of each point."""

    metric: Metric
    matrix: list[list[float]] = Field(description="[n][n], symmetric")
    nearest: list[list[int]] | None = Field(default=None, description="[n][top], the most similar first")
    nearest_values: list[list[float]] | None = None


async def similarity(service: Service, model: Model, options: SimilarityOptions, points: Points) -> Answer:
    """How alike images and latents are: all pairs, and the nearest others of each."""
    check_count(points, 2)
    if options.metric != "cosine" and points.latents is not None:
        raise refuse("latents", f"have no posteriors, which {options.metric} compares; send images")
    if options.top is not None and options.top >= len(points):
        raise refuse("top", f"is {options.top}; each of {len(points)} points has {len(points) - 1} others")
    latents, posterior = await encode_points(model, points)
    compare = partial(matrix, options.metric, latents, posterior)
    found = await service.run(len(points) * latents.size, compare)
    arrays: dict[str, NDArray[Any]] = {"matrix": found.astype(np.float32)}
    if options.top is not None:
        arrays |= _nearest(found, options.top, largest=options.metric == "cosine")
    return Answer(arrays, fields={"metric": options.metric})


def matrix(metric: str, latents: Floats, posterior: Posterior | None) -> Doubles:
    """All pairs of n points by `metric`, float64 [n, n], symmetric; docs/latent-space.md defines them."""
    mean = latents.reshape(len(latents), -1).astype(np.float64)
    if metric == "cosine" or posterior is None:
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        unit = mean / np.where(lengths == 0, 1, lengths)  # the origin is similar to nothing
        product = unit @ unit.T
        return np.clip((product + product.T) / 2, -1, 1)
    variance = np.exp(posterior.logvar.reshape(len(latents), -1).astype(np.float64))
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
    """The `top` most similar others of each point, never the point itself."""
    order = -found if largest else found.copy()
    np.fill_diagonal(order, np.inf)
    nearest = np.argsort(order, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(found, nearest, axis=1)
    return {"nearest": nearest, "nearest_values": values.astype(np.float32)}


SIMILARITY = Operation(
    "similarity",
    similarity,
    SimilarityOptions,
    SimilarityAnswer,
    Inputs.POINTS,
    Outputs.ARRAYS,
    requests=lambda _: [
        Example("cosine", "Two images", {"images": [SQUARE, SQUARE]}),
        Example(
            "nearest",
            "The nearest other of each of three images, by their posteriors",
            {"images": [SQUARE] * 3, "metric": "symmetric_kl", "top": 1},
        ),
    ],
    answers=lambda its: [
        Example(
            "two",
            "Two images, and the nearest other of each",
            {
                "model": its.reference,
                "metric": "cosine",
                "matrix": [[1.0, 0.25], [0.25, 1.0]],
                "nearest": [[1], [0]],
                "nearest_values": [[0.25], [0.25]],
            },
        )
    ],
    tag="Latent space",
)
