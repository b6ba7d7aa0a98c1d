"""What goes into and comes out of the latent routes: /score, /interpolate, /traverse and the others."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from service.schemas import Latent, Options, _split


class MapOptions(Options):
    """Query parameters of /models/{name}/map."""

    return_: Annotated[
        list[Literal["latents"]],
        BeforeValidator(_split),
        Field(alias="return", default_factory=list, description="`latents` adds the mean of each point"),
    ]


class Thumbnails(BaseModel):
    """How the PNG is laid out: without gaps, `columns` in a row, in the order of the points."""

    height: int
    width: int
    columns: int


class MapAnswer(BaseModel):
    """Held-out images in the plane of the latent space in which their posterior means differ most.

    Every place of the plane is a latent: mean + x · components[0] + y · components[1].
    """

    model: str = Field(examples=["mnist@1"])
    mean: list[float] = Field(description="[d], d the size of a flattened latent")
    components: list[list[float]] = Field(description="[2][d], orthonormal")
    variance: list[float] = Field(description="share of the variance along each component, 0…1")
    points: list[list[float]] = Field(description="[n][2]: x and y of each image")
    labels: list[int] | None = Field(description="[n]: numbers of label_names; null where there are none")
    label_names: list[str] | None
    latents: list[Latent] | None = Field(default=None, description="[n][*latent], only if asked for")
    thumbnails: Thumbnails
