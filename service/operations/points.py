"""Points of the latent space: images, which are encoded to their posterior means, latents, or both.

Points are numbered images first, then latents.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from service.core.problems import InvalidRequest, TooLarge
from service.core.service import ServedModel
from service.http.codecs import (
    Budget,
    ByteImages,
    Floats,
    images_from_file,
    images_from_form,
    images_from_list,
    images_from_npy,
    latents_from_list,
    latents_from_npy,
)
from service.http.negotiation import BMP, GIF, JPEG, JSON, MULTIPART, NPY, PNG, WEBP
from service.http.npy import read_npy
from service.operations.latent_fields import PointsBody
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.posterior import Posterior


class Points(NamedTuple):
    """What a request has of them: uint8 [n, h, w, c], float32 [m, *latent]; None for none."""

    images: ByteImages | None
    latents: Floats | None

    def __len__(self) -> int:
        return sum(len(each) for each in (self.images, self.latents) if each is not None)


async def located(model: ServedModel, points: Points) -> tuple[Floats, Posterior | None]:
    """Where the points are, float32 [n, *latent], and the posteriors of those that are images."""
    posterior = None if points.images is None else await model.encode(points.images)
    places = [posterior.mean] if posterior else []
    if points.latents is not None:
        places.append(points.latents)
    return np.concatenate(places), posterior


def check_count(points: Points, fewest: int, most: int | None = None) -> None:
    """InvalidRequest unless there are as many as the route takes."""
    if len(points) < fewest or (most is not None and len(points) > most):
        wanted = str(fewest) if most == fewest else f"{fewest} or more" if most is None else f"at most {most}"
        raise InvalidRequest(
            f"The request has {len(points)} points, images and latents together; this takes {wanted}."
        )


def points_from_body(body: PointsBody, manifest: Manifest, budget: Budget) -> Points:
    """The `images` and `latents` of a JSON body."""
    if (count := len(body.images) + len(body.latents)) > budget.images:
        raise TooLarge(f"{count:,} points are more than the {budget.images:,} of one request; send several.")
    return Points(
        images_from_list(body.images, manifest, budget) if body.images else None,
        latents_from_list(body.latents, manifest, budget) if body.latents else None,
    )


def points_from_npy(data: bytes, manifest: Manifest, budget: Budget) -> Points:
    """uint8 are images, float32 are latents."""
    if read_npy(data, np.dtype(np.uint8), np.dtype(np.float32)).dtype == np.uint8:
        return Points(images_from_npy(data, manifest, budget), None)
    return Points(None, latents_from_npy(data, manifest, budget))


def points_from_form(files: list[bytes], manifest: Manifest, budget: Budget) -> Points:
    return Points(images_from_form(files, manifest, budget), None)


def points_from_file(data: bytes, manifest: Manifest, budget: Budget) -> Points:
    return Points(images_from_file(data, manifest, budget), None)


PointReader = Callable[[Any, Manifest, Budget], Points]

SEVERAL_READERS: dict[str, PointReader] = {
    JSON: points_from_body,
    MULTIPART: points_from_form,
    NPY: points_from_npy,
}
POINT_READERS: dict[str, PointReader] = {
    JSON: points_from_body,
    **dict.fromkeys((PNG, JPEG, WEBP, GIF, BMP), points_from_file),
    MULTIPART: points_from_form,
    NPY: points_from_npy,
}
