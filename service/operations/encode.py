"""Images to latents."""

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.models import Model
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE, latent
from service.operations.fields import LIST, Latent, Seed, new_seed
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from service.operations.usage import kl_of
from vaeserve.bundle.arrays import ByteImages

ACTIVE = 0.01  # nats of mean KL from which on a dimension counts as used


class EncodeOptions(fields.Options):
    """Query parameters of /encode."""

    return_: Annotated[list[Literal["mean", "logvar", "sample", "kl", "active"]], LIST] = Field(
        ["mean"],
        alias="return",
        min_length=1,
        description="What to return of each posterior: its mean, its log-variance, a sample of it, its KL to "
        "N(0, I) in nats; `active` says which dimensions the model uses at all.",
    )
    seed: Seed = None


class EncodeAnswer(fields.Result):
    """What `return` asked for, one entry for each image, in their order."""

    mean: list[Latent] | None = None
    logvar: list[Latent] | None = None
    sample: list[Latent] | None = None
    kl: list[Latent] | None = None
    active: Any = Field(default=None, description="[*latent], true where the model uses the dimension")
    seed: int | None = None


async def encode(service: Service, model: Model, options: EncodeOptions, images: ByteImages) -> Answer:
    """Images to latents: the mean of each image's posterior.

    `return` selects the log-variance, a sample and more. Image files of any size and mode are fitted to the
    model's size; arrays must have it.
    """
    posterior = await model.encode(images)
    if options.return_ == ["mean"]:
        return Answer({"mean": posterior.mean})
    arrays: dict[str, NDArray[Any]] = posterior._asdict()
    seed = None
    if "sample" in options.return_:
        seed = new_seed(options.seed)
        arrays["sample"] = await service.run(posterior.mean.size, partial(posterior.sample, seed))
    if "kl" in options.return_:
        arrays["kl"] = posterior.kl().astype(np.float32)
    if "active" in options.return_:
        arrays["active"] = np.reshape(kl_of(model), posterior.mean.shape[1:]) > ACTIVE
    return Answer({str(name): arrays[name] for name in options.return_}, seed)


ENCODE = Operation(
    "encode",
    encode,
    EncodeOptions,
    EncodeAnswer,
    Inputs.IMAGES,
    Outputs.ARRAYS,
    requests=lambda its: [
        Example("file", "An image file in base64", {"images": [SQUARE]}),
        Example(
            "posterior",
            "The whole posterior, and a sample that can be drawn again",
            {"images": [SQUARE], "return": ["mean", "logvar", "sample"], "seed": 7},
        ),
        Example("version", "One version of one model", {"images": [SQUARE], "model": its.reference}),
    ],
    answers=lambda its: [
        Example("mean", "The embedding of one image", {"model": its.reference, "mean": [latent(its)]})
    ],
    arrays=lambda its: {
        "mean": Array(np.float32, its.latent.shape),
        "logvar": Array(np.float32, its.latent.shape),
    },
    array_options={"return": ["mean", "logvar"]},
)
