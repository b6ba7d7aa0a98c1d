"""What single dimensions of the latent space do, decoded."""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.models import Model
from service.core.problems import TooLarge
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE, latent
from service.operations.fields import LIST, refuse
from service.operations.operation import Example, Inputs, Operation, Outputs
from service.operations.points import Points, check_count, encode_points
from service.operations.usage import kl_of


class TraverseOptions(fields.Options):
    """Query parameters of /traverse."""

    dimensions: Annotated[
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] | None,
        LIST,
        Field(description="Numbers of flattened dimensions. Default: those with the highest KL."),
    ] = None
    top: int = Field(8, ge=1, le=64, description="How many of those with the highest KL.")
    n: int = Field(9, ge=2, le=64, description="Number of steps of each dimension.")
    extent: float = Field(3.0, ge=0, le=10, description="Each dimension runs from -extent to +extent.")


class TraverseAnswer(fields.Result):
    """A grid in reading order: a row for each dimension, a column for each value."""

    images: list[str] = Field(description="PNG files in base64")
    dimensions: list[int]
    values: list[float]


async def traverse(service: Service, model: Model, options: TraverseOptions, points: Points) -> Answer:
    """What single dimensions do: a grid, each row of which changes one dimension of one image or latent.

    Without an image or latent the grid is around the origin.
    """
    check_count(points, 0, 1)
    dimensions = _dimensions(model, options)
    if (rows := len(dimensions) * options.n) > (most := service.settings.max_samples):
        raise TooLarge(
            f"dimensions × n = {rows:,} is more than the {most} images of one request; send several."
        )
    shape = model.manifest.latent.shape
    start = (await encode_points(model, points))[0] if len(points) else np.zeros((1, *shape), np.float32)
    values = np.linspace(-options.extent, options.extent, options.n, dtype=np.float32)
    flat = np.repeat(start.reshape(1, -1), rows, axis=0)
    flat[np.arange(rows), np.repeat(dimensions, options.n)] = np.tile(values, len(dimensions))
    images = await model.decode(flat.reshape(rows, *shape))
    arrays: dict[str, NDArray[Any]] = {"images": images, "dimensions": dimensions, "values": values}
    return Answer(arrays, columns=options.n)


def _dimensions(model: Model, options: TraverseOptions) -> NDArray[np.int64]:
    """The dimensions that were asked for, or those with the highest KL, the highest first."""
    if options.dimensions is None:
        return np.argsort(-np.array(kl_of(model)), kind="stable")[: options.top]
    size = model.manifest.latent.size
    if wrong := [each for each in options.dimensions if each >= size]:
        raise refuse(
            "dimensions", f"has {wrong[0]}; {model.manifest.reference} has the dimensions 0 to {size - 1}"
        )
    return np.array(options.dimensions, np.int64)


TRAVERSE = Operation(
    "traverse",
    traverse,
    TraverseOptions,
    TraverseAnswer,
    Inputs.POINT,
    Outputs.PICTURES,
    requests=lambda its: [
        *(
            [
                Example(
                    "file", "The dimensions that the model uses most, around an image", {"images": [SQUARE]}
                ),
                Example("origin", "Around the middle of the latent space", {}),
            ]
            if its.latent.kl
            else []
        ),
        Example(
            "dimensions",
            "One dimension around a latent",
            {"latents": [latent(its)], "dimensions": [its.latent.size - 1], "n": 5, "extent": 2},
        ),
    ],
    answers=lambda its: [
        Example(
            "row",
            "One dimension in two steps",
            {"model": its.reference, "images": [SQUARE, SQUARE], "dimensions": [3], "values": [-3.0, 3.0]},
        )
    ],
    tag="Latent space",
)
