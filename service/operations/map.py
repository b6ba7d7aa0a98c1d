"""The plane of the latent space that a bundle's map.npz holds."""

import math
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.core.models import Model
from service.core.problems import NotFound
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.fields import LIST, Latent
from service.operations.operation import Example, Inputs, Operation, Outputs
from vaeserve.bundle.latent_map import NO_LABEL


class MapOptions(fields.Options):
    """Query parameters of /models/{name}/map."""

    return_: Annotated[list[Literal["latents"]], LIST] = Field(
        [], alias="return", description="`latents` adds the mean of each point."
    )


class Thumbnails(BaseModel):
    """The layout of the PNG: no gaps, `columns` in a row, in the order of the points."""

    height: int
    width: int
    columns: int


class MapAnswer(fields.Result):
    """Held-out images in the plane of the latent space in which their posterior means vary most.

    Every place of the plane is a latent: mean + x · components[0] + y · components[1].
    """

    mean: list[float] = Field(description="[d], d the size of a flattened latent")
    components: list[list[float]] = Field(description="[2][d], orthonormal")
    variance: list[float] = Field(description="share of the variance along each component, 0…1")
    points: list[list[float]] = Field(description="[n][2]: x and y of each image")
    labels: list[int] | None = Field(description="[n]: numbers of label_names; null without labels")
    label_names: list[str] | None
    latents: list[Latent] | None = Field(default=None, description="[n][*latent], only if asked for")
    thumbnails: Thumbnails


async def latent_map(service: Service, model: Model, options: MapOptions) -> Answer:
    """Held-out images on a plane of the latent space, spanned by the two principal components of their means.

    Every place of the plane is a latent. As PNG, the thumbnails of the images.
    """
    if (found := model.map) is None:
        raise NotFound(
            f"{model.manifest.reference} has no map; publish a version with one: `vae-train complete`."
        )
    arrays: dict[str, NDArray[Any]] = found._asdict()
    more = {"thumbnails": arrays.pop("thumbnails")}
    _, height, width, _ = found.thumbnails.shape
    columns = math.ceil(math.sqrt(len(found.thumbnails)))
    fields: dict[str, Any] = {
        "label_names": model.manifest.labels,
        "thumbnails": Thumbnails(height=height, width=width, columns=columns).model_dump(),
    }
    if "latents" not in options.return_:
        more["latents"] = arrays.pop("latents")
    if (found.labels == NO_LABEL).all():
        more["labels"] = arrays.pop("labels")
        fields |= {"labels": None, "label_names": None}
    return Answer(arrays, fields=fields, more=more, picture=lambda: found.thumbnails, columns=columns, gap=0)


MAP = Operation(
    "map",
    latent_map,
    MapOptions,
    MapAnswer,
    Inputs.NOTHING,
    Outputs.MAP,
    requests=lambda _: [],
    answers=lambda its: [
        Example(
            "plane",
            "The map of a model of two classes, with two images on it",
            {
                "model": its.reference,
                "mean": [0.0] * its.latent.size,
                "components": [[0.25] * its.latent.size, [0.25] * its.latent.size],
                "variance": [0.11, 0.09],
                "points": [[-1.5, 0.25], [0.75, -2.0]],
                "labels": [0, 1],
                "label_names": ["0", "1"],
                "thumbnails": {"height": its.image.height, "width": its.image.width, "columns": 2},
            },
        )
    ],
    tag="Latent space",
    methods=("GET",),
    default_model=False,
    cacheable=lambda _: True,
    available=lambda its: its.map is not None,
)
