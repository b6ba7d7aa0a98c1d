"""Weighted sums in the latent space, decoded."""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.models import Model
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE, latent
from service.operations.fields import LIST, Latent, refuse
from service.operations.operation import Example, Inputs, Operation, Outputs
from service.operations.points import Points, check_count, encode_points


class ArithmeticOptions(fields.Options):
    """Query parameters of /arithmetic."""

    weights: Annotated[
        Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)] | None,
        LIST,
        Field(description="One for each point, as in 1,-1,1. Default: the average of the points."),
    ] = None


class ArithmeticAnswer(fields.Result):
    """The weighted sum of the points, and its image."""

    images: list[str] = Field(description="one PNG file in base64")
    latents: list[Latent]


async def arithmetic(service: Service, model: Model, options: ArithmeticOptions, points: Points) -> Answer:
    """A weighted sum of images and latents, decoded: a - b + c."""
    check_count(points, 1)
    weights = np.full(len(points), 1 / len(points)) if options.weights is None else np.array(options.weights)
    if len(weights) != len(points):
        raise refuse("weights", f"has {len(weights)} numbers for {len(points)} points; send one for each")
    latents, _ = await encode_points(model, points)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.tensordot(weights, latents.astype(np.float64), axes=1)[np.newaxis].astype(np.float32)
    if not np.isfinite(total).all():
        raise refuse("weights", "makes a sum that is not finite as float32; send smaller numbers")
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(total), "latents": total}
    return Answer(arrays)


ARITHMETIC = Operation(
    "arithmetic",
    arithmetic,
    ArithmeticOptions,
    ArithmeticAnswer,
    Inputs.POINT,
    Outputs.PICTURES,
    requests=lambda its: [
        Example("difference", "a - b + c", {"images": [SQUARE] * 3, "weights": [1, -1, 1]}),
        Example(
            "average",
            "Half way between an image and a latent",
            {"images": [SQUARE], "latents": [latent(its)]},
        ),
    ],
    answers=lambda its: [
        Example(
            "sum",
            "The sum and its image",
            {"model": its.reference, "images": [SQUARE], "latents": [latent(its)]},
        )
    ],
    tag="Latent space",
)
