"""Images through the model and back."""

from functools import partial

import numpy as np
from pydantic import Field

from service.core.models import Model
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from vaeserve.bundle.arrays import ByteImages
from vaeserve.bundle.scores import squared_error


class ReconstructAnswer(fields.Result):
    """The reconstruction of each image, and how far it is from the image."""

    images: list[str] = Field(description="PNG files in base64")
    error: list[float] = Field(description="mean squared error on [0, 1]")


async def reconstruct(service: Service, model: Model, options: fields.Options, images: ByteImages) -> Answer:
    """Images through the model and back, with the squared error of each.

    The mean of the posterior is decoded, so the same image always gives the same reconstruction.
    """
    posterior = await model.encode(images)
    reconstructions = await model.decode(posterior.mean)
    error = await service.run(images.size, partial(squared_error, images, reconstructions))
    model.metrics.reconstructed(error)
    return Answer({"images": reconstructions, "error": error})


RECONSTRUCT = Operation(
    "reconstruct",
    reconstruct,
    fields.Options,
    ReconstructAnswer,
    Inputs.IMAGES,
    Outputs.PICTURES,
    requests=lambda _: [Example("file", "An image file in base64", {"images": [SQUARE]})],
    answers=lambda its: [
        Example("image", "One image", {"model": its.reference, "images": [SQUARE], "error": [0.0031]})
    ],
    arrays=lambda its: {"images": Array(np.uint8, its.image.shape), "error": Array(np.float32)},
)
