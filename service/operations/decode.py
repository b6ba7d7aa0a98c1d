"""Latents to images."""

import numpy as np
from pydantic import Field

from service.core.models import Model
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE, latent
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from vaeserve.bundle.arrays import Floats


class DecodeAnswer(fields.Result):
    """One image for each row of latents."""

    images: list[str] = Field(description="PNG files in base64")


async def decode(service: Service, model: Model, options: fields.Options, latents: Floats) -> Answer:
    """Latents to images."""
    return Answer({"images": await model.decode(latents)})


DECODE = Operation(
    "decode",
    decode,
    fields.Options,
    DecodeAnswer,
    Inputs.LATENTS,
    Outputs.PICTURES,
    requests=lambda its: [
        Example("latents", "One row of latents", {"latents": [latent(its)], "model": its.reference})
    ],
    answers=lambda its: [Example("image", "One image", {"model": its.reference, "images": [SQUARE]})],
    arrays=lambda its: {"images": Array(np.uint8, its.image.shape)},
)
