"""Points of the latent space: images, which are encoded to their posterior means, latents, or both.

Points are numbered images first, then latents.
"""

from typing import NamedTuple

import numpy as np

from service.core.models import Model
from service.core.problems import InvalidRequest, Pointer
from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.posterior import Posterior


class Points(NamedTuple):
    """The points of a request: uint8 [n, h, w, c] and float32 [m, *latent]; None for none."""

    images: ByteImages | None
    latents: Floats | None

    def __len__(self) -> int:
        return sum(len(each) for each in (self.images, self.latents) if each is not None)


async def encode_points(model: Model, points: Points) -> tuple[Floats, Posterior | None]:
    """The latents of all points, float32 [n, *latent], and the posteriors of those that are images."""
    posterior = None if points.images is None else await model.encode(points.images)
    latents = [posterior.mean] if posterior else []
    if points.latents is not None:
        latents.append(points.latents)
    return np.concatenate(latents), posterior


def check_count(points: Points, fewest: int, most: int | None = None) -> None:
    """InvalidRequest unless there are from `fewest` to `most` points."""
    if len(points) < fewest or (most is not None and len(points) > most):
        needed = str(fewest) if most == fewest else f"{fewest} or more" if most is None else f"at most {most}"
        detail = f"has {len(points)} points, images and latents together; this operation takes {needed}"
        field = "latents" if points.images is None and points.latents is not None else "images"
        raise InvalidRequest(
            f"The request {detail}.", errors=[Pointer(pointer=f"/{field}", location="", detail=detail)]
        )
