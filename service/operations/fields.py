"""Fields that several operations share: options, and the images and latents of a JSON body."""

import secrets
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.core.problems import InvalidRequest, Pointer
from vaeserve.bundle.images import FORMATS
from vaeserve.bundle.noise import SEEDS

MODEL = "mnist@1"  # in examples of single fields


class Options(BaseModel):
    """What every request may say besides its data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Annotated[
        str | None,
        Field(max_length=128, description="`name` or `name@version`. Default: the server's default model."),
    ] = None


def split(value: Any) -> Any:
    """`?return=mean,logvar` and `?return=mean&return=logvar` are the same list."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [part.strip() for item in value for part in item.split(",")]
    return value


# A list that may be written as `a,b` or as several parameters of one name, in a query and in a form.
LIST = BeforeValidator(split)


@cache
def lists(options: type[Options]) -> frozenset[str]:
    """The options, by their names in JSON, that are lists."""
    return frozenset(
        field.alias or name for name, field in options.model_fields.items() if LIST in field.metadata
    )


Seed = Annotated[
    int | None,
    Field(ge=0, lt=SEEDS, description="Makes the noise repeatable. Default: a new seed, which is returned."),
]


def new_seed(given: int | None) -> int:
    """The seed of the request, or a new one that is short enough to type."""
    return secrets.randbits(32) if given is None else given


First = Annotated[
    int,
    Field(
        ge=0,
        lt=1 << 31,
        description="Row of the seed at which the noise of this request begins. Several requests with "
        "`first` 0, 256, 512 … together draw what one request would have drawn.",
    ),
]

# fail_fast: a list of a million wrong values is one error. strict: "1" and true are not numbers.
_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
_Bytes1 = Annotated[list[_Byte], Field(fail_fast=True)]
_Bytes2 = Annotated[list[_Bytes1], Field(fail_fast=True)]
_Bytes3 = Annotated[list[_Bytes2], Field(fail_fast=True)]
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Reals1 = Annotated[list[_Real], Field(fail_fast=True)]
_Reals2 = Annotated[list[_Reals1], Field(fail_fast=True)]
_Reals3 = Annotated[list[_Reals2], Field(fail_fast=True)]
Latent = _Reals1 | _Reals2 | _Reals3
Image = str | _Bytes2 | _Bytes3

IMAGES = (
    f"Each an image file ({', '.join(FORMATS)}) in base64, which is fitted to the model's size; or its "
    "pixels 0…255 as nested lists [h][w][c] or [h][w], in exactly the model's size."
)
LATENTS = "[n][*latent], as /encode returns them"


class JsonBody(BaseModel):
    """A JSON body: types are strict, as JSON has them."""

    model_config = ConfigDict(strict=True)


class ImagesBody(JsonBody):
    """A body that carries images."""

    images: Annotated[list[Image], Field(min_length=1, fail_fast=True, description=IMAGES)]


class LatentsBody(JsonBody):
    """A body that carries latents."""

    latents: Annotated[list[Latent], Field(min_length=1, fail_fast=True, description=LATENTS)]


class PointsBody(JsonBody):
    """A body that carries points of the latent space, numbered images first."""

    images: list[Image] = Field(default_factory=list, fail_fast=True, description=IMAGES)
    latents: list[Latent] = Field(default_factory=list, fail_fast=True, description=LATENTS)


class Result(BaseModel):
    """An answer as JSON."""

    model: str = Field(examples=[MODEL])


def refuse(field: str, detail: str) -> InvalidRequest:
    """The problem with one option or field; `detail` continues its name.

    Where it stands, in the query or in the body, is filled in by the adapter that read it.
    """
    return InvalidRequest(
        f"`{field}` {detail}.", errors=[Pointer(pointer=f"/{field}", location="", detail=detail)]
    )
