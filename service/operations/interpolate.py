"""The way from one point of the latent space to another, decoded."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.models import Model
from service.core.problems import TooLarge
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE, latent
from service.operations.fields import LIST, Latent
from service.operations.operation import Example, Inputs, Operation, Outputs
from service.operations.points import Points, check_count, encode_points
from vaeserve.bundle.arrays import Floats
from vaeserve.bundle.images import MAX_SIDE


class InterpolateOptions(fields.Options):
    """Query parameters of /interpolate."""

    n: int = Field(9, ge=2, description="Number of frames, both ends included.")
    method: Literal["slerp", "lerp"] = Field(
        "slerp",
        description="`slerp` follows the arc, on which the distance from the origin changes evenly; `lerp` "
        "is the straight line.",
    )
    duration: int = Field(80, ge=20, le=10_000, description="Milliseconds of each frame of an animation.")
    return_: Annotated[list[Literal["latents"]], LIST] = Field(
        [], alias="return", description="`latents` adds the latents of the frames."
    )


class InterpolateAnswer(fields.Result):
    """The frames from the first point to the second."""

    images: list[str] = Field(description="PNG files in base64")
    latents: list[Latent] | None = None


async def interpolate(service: Service, model: Model, options: InterpolateOptions, points: Points) -> Answer:
    """Frames from one image or latent to another.

    As a picture they are a strip; as GIF or WebP an animation.
    """
    check_count(points, 2, 2)
    if options.n > (most := service.settings.max_samples):
        raise TooLarge(f"n = {options.n:,} is more than the {most} images of one request; send several.")
    (start, end), _ = await encode_points(model, points)
    steps = np.linspace(0, 1, options.n)
    latents = (slerp if options.method == "slerp" else lerp)(start, end, steps)
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(latents)}
    if "latents" in options.return_:
        arrays["latents"] = latents
    # One strip, if a JPEG can be as wide.
    columns = min(options.n, MAX_SIDE // (model.manifest.image.width + 2))
    return Answer(arrays, columns=columns, duration=options.duration)


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


INTERPOLATE = Operation(
    "interpolate",
    interpolate,
    InterpolateOptions,
    InterpolateAnswer,
    Inputs.POINTS,
    Outputs.ANIMATION,
    requests=lambda its: [
        Example("images", "Nine frames between two images", {"images": [SQUARE, SQUARE]}),
        Example(
            "latents",
            "In a straight line between an image and a latent, with the latents of the frames",
            {"images": [SQUARE], "latents": [latent(its)], "n": 5, "method": "lerp", "return": ["latents"]},
        ),
    ],
    answers=lambda its: [Example("two", "Two frames", {"model": its.reference, "images": [SQUARE, SQUARE]})],
    tag="Latent space",
)
