"""What JSON bodies, query parameters and JSON answers look like: the pydantic models behind /docs.

A body has its route's query parameters as fields too, so `?seed=7` and `{"seed": 7}` mean the same.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.core.problems import InvalidRequest, Pointer, TooLarge, invalid
from vaeserve.bundle.manifest import ImageSpec, Manifest
from vaeserve.bundle.noise import SEEDS
from vaeserve.bundle.prior import PriorKind


class Options(BaseModel):
    """What every request may say besides its data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Annotated[
        str | None,
        Field(
            max_length=128,
            description="`name` or `name@version`; unset: the server's default model",
            examples=["mnist@1"],
        ),
    ] = None


# Options that may be said several times, in a query and in a form.
LISTS = frozenset({"return", "weights", "dimensions"})


def split(value: Any) -> Any:
    """`?return=mean,logvar` and `?return=mean&return=logvar` are the same list."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [part.strip() for item in value for part in item.split(",")]
    return value


def _text(value: Any) -> Any:
    """A label's place among the labels may be sent as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Seed = Annotated[
    int | None,
    Field(
        ge=0,
        lt=SEEDS,
        description="makes the noise repeatable; without one, one is made up and returned",
        examples=[7],
    ),
]


First = Annotated[
    int,
    Field(
        ge=0,
        lt=1 << 31,
        description="the noise of this request's rows is that of the rows from here on of the seed: what is "
        "drawn in several requests is then what one would have given",
        examples=[256],
    ),
]


class EncodeOptions(Options):
    """Query parameters of /encode."""

    return_: Annotated[
        list[Literal["mean", "logvar", "sample", "kl", "active"]],
        BeforeValidator(split),
        Field(
            alias="return",
            min_length=1,
            description="what to return of the posterior: its mean, its log-variance, a sample of it, its KL "
            "to N(0, I) in nats; and which dimensions are active, that is, used by the model at all",
        ),
    ] = ["mean"]
    seed: Seed = None


class SampleOptions(Options):
    """Query parameters of /sample."""

    n: int = Field(1, ge=1, description="how many images; GET /models/{name} says how many at most")
    seed: Seed = None
    first: First = 0
    temperature: float = Field(
        1.0,
        ge=0,
        le=10,
        description="scales the deviation of the latents: 1 is the model's prior, 0 its mean",
    )
    prior: Annotated[
        PriorKind | None,
        Field(
            description="`flow` was trained with the model, `mixture` fitted to the latents of the training "
            "images, `normal` is N(0, I); unset: the one the model prefers",
        ),
    ] = None
    label: Annotated[
        Annotated[str, Field(max_length=256)] | None,
        BeforeValidator(_text),
        Field(
            description="only of the images with this label: one of the manifest's `labels`, or its place "
            "among them, from 0",
            examples=["7"],
        ),
    ] = None
    truncation: float | None = Field(
        None,
        ge=0.01,
        le=10,
        description="cuts the noise off at ± this many deviations: typical images instead of rare ones",
    )
    return_: Annotated[
        list[Literal["latents"]],
        BeforeValidator(split),
        Field(alias="return", description="`latents` adds the latents that were decoded"),
    ] = []


# fail_fast: a list of a million wrong values is one error. strict: "1" and true are no numbers.
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
    "Each an image file (PNG, JPEG, WebP, GIF, BMP) in base64, which is fitted to the model's size; or its "
    "pixels 0…255 as nested lists [h][w][c] or [h][w], in exactly the model's size."
)
Images = Annotated[list[Image], Field(min_length=1, fail_fast=True, description=IMAGES)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True)


class EncodeBody(Body, EncodeOptions):
    """JSON body of /encode."""

    images: Images


class ReconstructBody(Body, Options):
    """JSON body of /reconstruct."""

    images: Images


class DecodeBody(Body, Options):
    """JSON body of /decode."""

    latents: Annotated[
        list[Latent],
        Field(min_length=1, fail_fast=True, description="[n][*latent], as /encode returns them"),
    ]


class SampleBody(Body, SampleOptions):
    """JSON body of POST /sample; all of it may be left out."""


class EncodeAnswer(BaseModel):
    """What was asked for with `return`, one entry for each image, in their order."""

    model: str = Field(examples=["mnist@1"])
    mean: list[Latent] | None = None
    logvar: list[Latent] | None = None
    sample: list[Latent] | None = None
    kl: list[Latent] | None = None
    active: Any = Field(default=None, description="[*latent], true where the model uses the dimension")
    seed: int | None = None


class ImagesAnswer(BaseModel):
    """Images as PNG files in base64."""

    model: str = Field(examples=["mnist@1"])
    images: list[str]


class ReconstructAnswer(ImagesAnswer):
    """The reconstructions and how far each is from its image."""

    error: list[float] = Field(description="mean squared error on [0, 1]")


class SampleAnswer(ImagesAnswer):
    """Images drawn from the model's prior."""

    seed: int
    latents: list[Latent] | None = None


class Limits(BaseModel):
    """What one request may ask of this server."""

    max_body: int = Field(description="bytes")
    max_images: int
    max_samples: int
    max_pixels: int = Field(
        description="of one image file (WebP: half as many); all files of a request: four times as many"
    )


class ModelSummary(BaseModel):
    """What a client must know of a model to send it something."""

    name: str
    versions: list[int] = Field(description="those loaded; requests without a version get the newest")
    default: bool = Field(description="whether requests that name no model get this one")
    image: ImageSpec
    latent: tuple[int, ...] = Field(description="shape of one image's latents")


class ModelsAnswer(BaseModel):
    """The models that are loaded, and the folders that were refused with the reason."""

    models: list[ModelSummary]
    refused: dict[str, str]


class ModelAnswer(BaseModel):
    """All that there is to know about one model."""

    model: str = Field(examples=["mnist@1"])
    state: Literal["ready"]
    versions: list[int]
    default: bool
    refused: dict[str, str] = Field(
        description="versions of it that are not served, and why: by their folder"
    )
    limits: Limits
    manifest: Manifest


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The models are loaded and proved on their golden vectors."""

    status: Literal["ready"] = "ready"
    models: list[str] = Field(examples=[["mnist@1"]])


B = TypeVar("B", bound=BaseModel)
O = TypeVar("O", bound=Options)  # noqa: E741

# What a parsed body can take in memory, measured in bytes for each of these characters: a value in a list,
# a list of its own, a field that does not belong there. `[[],[],…` is 30 times as large parsed as sent.
_COST = {b",": 70, b"[": 60, b":": 1200}
_MAX_COST = 96 << 20


def parse(kind: type[B], data: bytes) -> B:
    """A JSON body as its model, or the problem that says where it is wrong."""
    if sum(cost * data.count(sign) for sign, cost in _COST.items()) > _MAX_COST:
        raise TooLarge(
            "The body has too many values for JSON; send arrays as application/x-npy, or fewer at a time."
        )
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise invalid(_plain(error)) from None


def merge(query: Options, body: O) -> O:
    """The options of a request that has them in two places: each said once, or twice alike."""
    twice = [
        Pointer(
            pointer=f"/{type(query).model_fields[name].alias or name}",
            location="body",
            detail="differs from the query parameter of this name",
        )
        for name in sorted(query.model_fields_set & body.model_fields_set)
        if getattr(query, name) != getattr(body, name)
    ]
    if twice:
        raise InvalidRequest("The query and the body say different things; say it once.", errors=twice)
    return body.model_copy(update={name: getattr(query, name) for name in query.model_fields_set})


def parse_query(kind: type[O], query: bytes) -> O:
    """The options of a query string, as FastAPI reads them: of what is said twice the last, lists whole."""
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        values[name] = [*values.get(name, ()), value] if name in LISTS else value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise invalid({"loc": ("query", *each["loc"]), "msg": each["msg"]} for each in errors) from None


def parse_form(kind: type[O], fields: dict[str, list[str]]) -> O:
    """The options of a form, written as in a query: lists may be there several times, the rest once."""
    values = {name: found if name in LISTS or len(found) > 1 else found[0] for name, found in fields.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(_plain(error)) from None


_WANTED = {
    "images": "should be an image file in base64, or whole numbers 0…255 in nested lists [h][w] or [h][w][c]",
    "latents": "should be nested lists of finite numbers, in the shape of the model's latents",
}


def _plain(error: ValidationError) -> Iterator[dict[str, Any]]:
    """Pydantic's errors with `loc` as in the body, and one error for a value that is none of several types.

    For such a value pydantic reports each type that it is not; the one that got deepest is the one meant.
    """
    deepest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        field, *rest = each["loc"] or ("",)
        if field in _WANTED and rest:
            loc = (field, *(part for part in rest if isinstance(part, int)))
            known = deepest.get(loc[:2])
            wrong_kind = each["type"] in ("string_type", "list_type")
            if known and (len(known["loc"]) - 1, not known["wrong_kind"]) >= (len(loc), not wrong_kind):
                continue
            message = _WANTED[field] if wrong_kind else each["msg"]
            deepest[loc[:2]] = {"loc": ("body", *loc), "msg": message, "wrong_kind": wrong_kind}
        else:
            deepest[each["loc"]] = {"loc": ("body", *each["loc"]), "msg": each["msg"]}
    yield from deepest.values()
