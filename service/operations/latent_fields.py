"""What goes into and comes out of the latent routes: /score, /interpolate, /traverse and the others."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from service.operations.fields import IMAGES, Body, First, Image, Images, Latent, Options, Seed, split


class MapOptions(Options):
    """Query parameters of /models/{name}/map."""

    return_: Annotated[
        list[Literal["latents"]],
        BeforeValidator(split),
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


# --- /score -----------------------------------------------------------------------------------------------


class ScoreOptions(Options):
    """Query parameters of /score."""

    seed: Seed = None
    first: First = 0
    k: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="also the importance-weighted bound, with this many samples of each image's posterior",
    )
    false_positive_rate: float = Field(
        0.05, ge=0, le=1, description="share of normal images that may be called anomalies"
    )
    return_: Annotated[
        list[Literal["images", "error_map"]],
        BeforeValidator(split),
        Field(
            alias="return",
            default_factory=list,
            description="`images` adds the reconstructions, `error_map` how far off they are in each pixel",
        ),
    ]


class ScoreBody(Body, ScoreOptions):
    """JSON body of /score."""

    images: Images


class ScoreAnswer(BaseModel):
    """One entry for each image, in their order. The p-values are there if the model is calibrated."""

    model: str = Field(examples=["mnist@1"])
    elbo: list[float] = Field(description="-(distortion + rate), in nats")
    distortion: list[float] = Field(description="-log p(x|z) of one z ~ q(z|x), in nats")
    rate: list[float] = Field(description="KL(q(z|x) ‖ N(0, I)), in nats")
    log_prior: list[float] = Field(
        description="log p(z) of the posterior mean under the prior that is sampled from, in nats"
    )
    error: list[float] = Field(description="mean squared error of the reconstruction on [0, 1]")
    iwae: list[float] | None = Field(default=None, description="the bound with k samples, in nats")
    p_value: list[float] | None = Field(
        default=None,
        description="how often a normal image is as unusual, by the ELBO or by log_prior",
    )
    p_elbo: list[float] | None = None
    p_distortion: list[float] | None = None
    p_rate: list[float] | None = None
    p_prior: list[float] | None = None
    p_error: list[float] | None = None
    is_anomaly: list[bool] | None = Field(default=None, description="p_value ≤ false_positive_rate")
    false_positive_rate: float | None = None
    images: list[str] | None = None
    error_map: list[str] | None = None
    seed: int


# --- points: images and latents ---------------------------------------------------------------------------


class PointsBody(Body, Options):
    """Points of the latent space, numbered images first."""

    images: list[Image] = Field(default_factory=list, fail_fast=True, description=IMAGES)
    latents: list[Latent] = Field(
        default_factory=list, fail_fast=True, description="[n][*latent], as /encode returns them"
    )


class InterpolateOptions(Options):
    """Query parameters of /interpolate."""

    n: int = Field(9, ge=2, description="frames, both ends included")
    method: Literal["slerp", "lerp"] = Field(
        "slerp", description="slerp: along the arc, as far from the origin as its ends; lerp: straight"
    )
    duration: int = Field(80, ge=20, le=10_000, description="milliseconds of each frame of an animation")
    return_: Annotated[
        list[Literal["latents"]],
        BeforeValidator(split),
        Field(alias="return", default_factory=list, description="`latents` adds those of the frames"),
    ]


class InterpolateBody(PointsBody, InterpolateOptions):
    """JSON body of /interpolate: two points."""


class InterpolateAnswer(BaseModel):
    """The frames as PNG files in base64, from the first point to the second."""

    model: str = Field(examples=["mnist@1"])
    images: list[str]
    latents: list[Latent] | None = None


class TraverseOptions(Options):
    """Query parameters of /traverse."""

    dimensions: Annotated[
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] | None,
        BeforeValidator(split),
        Field(description="numbers of flattened dimensions; unset: those with the highest KL"),
    ] = None
    top: int = Field(8, ge=1, le=64, description="how many of those with the highest KL")
    n: int = Field(9, ge=2, le=64, description="steps of each dimension")
    extent: float = Field(3.0, ge=0, le=10, description="each dimension goes from -extent to +extent")


class TraverseBody(PointsBody, TraverseOptions):
    """JSON body of /traverse: one point, or none for latents of 0."""


class TraverseAnswer(BaseModel):
    """A grid of PNG files in base64, in reading order: a row for each dimension, a column for each value."""

    model: str = Field(examples=["mnist@1"])
    images: list[str]
    dimensions: list[int]
    values: list[float]


class ArithmeticOptions(Options):
    """Query parameters of /arithmetic."""

    weights: Annotated[
        Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)] | None,
        BeforeValidator(split),
        Field(description="one for each point; unset: the average", examples=[[1, -1, 1]]),
    ] = None


class ArithmeticBody(PointsBody, ArithmeticOptions):
    """JSON body of /arithmetic: points."""


class ArithmeticAnswer(BaseModel):
    """The weighted sum of the points, and its image as a PNG file in base64."""

    model: str = Field(examples=["mnist@1"])
    images: list[str]
    latents: list[Latent]


class SimilarityOptions(Options):
    """Query parameters of /similarity."""

    metric: Literal["cosine", "mahalanobis", "symmetric_kl"] = Field(
        "cosine",
        description="cosine of the means, 1 is alike; or a distance of the posteriors, 0 is alike: of their "
        "means in units of the average deviation, or their symmetric KL in nats",
    )
    top: int | None = Field(None, ge=1, description="also this many of the most alike ones of each")


class SimilarityBody(PointsBody, SimilarityOptions):
    """JSON body of /similarity: at least two points."""


class SimilarityAnswer(BaseModel):
    """All pairs of points, and of each the most alike others."""

    model: str = Field(examples=["mnist@1"])
    metric: Literal["cosine", "mahalanobis", "symmetric_kl"]
    matrix: list[list[float]] = Field(description="[n][n], symmetric")
    nearest: list[list[int]] | None = Field(default=None, description="[n][top], the most alike first")
    nearest_values: list[list[float]] | None = None
