"""How well the model explains each image, and how unusual that is."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.admission import admit
from service.core.models import Model
from service.core.problems import TooLarge, WrongModel
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE
from service.operations.fields import LIST, First, Seed, new_seed
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from service.operations.places import Places, find_places
from vaeserve.bundle.arrays import ByteImages, Doubles
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.scores import ImportanceBound, Scores, log_likelihood
from vaeserve.bundle.scores import score as score_arrays

# One logarithm of a pixel's probability takes as long as printing this many numbers, and so does comparing a
# pixel's error with the usual one.
LIKELIHOOD = 20
FALSE_POSITIVE_RATE = 0.05
# The importance-weighted bound may decode this many times as many images as /sample.
SAMPLES = 16
# Samples of one batch.
RUN = 64
# Its noise is not that of the ELBO, whose row is the image's number: less than this.
FIRST_ROW = 1 << 32


class ScoreOptions(fields.Options):
    """Query parameters of /score."""

    seed: Seed = None
    first: First = 0
    k: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Adds the importance-weighted bound, with this many samples of each image's posterior.",
    )
    false_positive_rate: float = Field(
        FALSE_POSITIVE_RATE, ge=0, le=1, description="Share of normal images that may be called anomalies."
    )
    return_: Annotated[list[Literal["images", "error_map", "overlay"]], LIST] = Field(
        [],
        alias="return",
        description="`images` adds the reconstructions, `error_map` their absolute error in each pixel, "
        "`overlay` each image in grey with what is unusual in colour.",
    )


class ScoreAnswer(fields.Result):
    """One entry for each image, in their order. The p-values are there if the model is calibrated."""

    elbo: list[float] = Field(description="-(distortion + rate), in nats")
    distortion: list[float] = Field(description="-log p(x|z) of one z ~ q(z|x), in nats")
    rate: list[float] = Field(description="KL(q(z|x) ‖ N(0, I)), in nats")
    log_prior: list[float] | None = Field(
        default=None,
        description="log p(z) of the posterior mean under the prior that is sampled from, in nats",
    )
    error: list[float] = Field(description="mean squared error of the reconstruction on [0, 1]")
    local: list[float] | None = Field(
        default=None,
        description="how unusual the error is in the most unusual place, in standard deviations",
    )
    where: list[Annotated[list[int], Field(min_length=4, max_length=4)]] | None = Field(
        default=None,
        description="that place: left, top, right and bottom in pixels of the image that was sent, upright; "
        "right and bottom are exclusive",
    )
    iwae: list[float] | None = Field(default=None, description="the bound with k samples, in nats")
    p_value: list[float] | None = Field(
        default=None,
        description="share of normal images that are as unusual, by the ELBO, by log_prior or by local",
    )
    p_elbo: list[float] | None = None
    p_distortion: list[float] | None = None
    p_rate: list[float] | None = None
    p_prior: list[float] | None = None
    p_error: list[float] | None = None
    p_local: list[float] | None = None
    is_anomaly: list[bool] | None = Field(
        default=None,
        description="p_value ≤ false_positive_rate; null where so small a p-value is not possible",
    )
    note: str | None = Field(default=None, description="why `is_anomaly` is null")
    false_positive_rate: float | None = None
    images: list[str] | None = None
    error_map: list[str] | None = None
    overlay: list[str] | None = None
    seed: int


async def score(
    service: Service,
    model: Model,
    options: ScoreOptions,
    images: ByteImages,
    files: Sequence[bytes | None] = (),
) -> Answer:
    """How well the model explains each image: distortion, rate and ELBO in nats, and p-values.

    The p-values say how unusual that is among images of the model's own kind, `where` is the most unusual
    place. As a picture, the image in grey with what is unusual in colour, at the image's own size if it is
    one; of a model without a local score, the error of each pixel.
    """
    _check(service, model, options, len(images))
    admit(len(images) * (2 + (options.k or 0)))
    seed = new_seed(options.seed)
    posterior = await model.encode(images)
    z = await service.run(
        posterior.mean.size,
        partial(posterior.sample, seed, range(options.first, options.first + len(images))),
    )
    pixels, reconstructions, log_prior = await asyncio.gather(
        model.pixels(z), model.decode(posterior.mean), model.log_prior(posterior.mean)
    )
    usual = model.calibration.usual if model.calibration else None
    places: Places | None = None
    if usual is not None:
        places = await service.run(
            images.size * LIKELIHOOD,
            partial(find_places, usual, model.manifest.image, images, reconstructions, files),
        )
    local = places.local if places else None
    found = await service.run(
        images.size * LIKELIHOOD,
        partial(score_arrays, model.manifest, images, posterior, pixels, reconstructions, log_prior, local),
    )
    model.metrics.reconstructed(found.error)
    arrays: dict[str, NDArray[Any]] = dict(found.by_name)
    if places:
        arrays["where"] = np.array(places.boxes, np.int32)
    if options.k:
        arrays["iwae"] = await _bound(service, model, options, images, posterior, seed)
    judged, more_fields = _judge(model, found, options.false_positive_rate)
    arrays = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in (arrays | judged).items()
    }
    drawn: Callable[[], ByteImages] = partial(_error_map, images, reconstructions)
    size = images.size
    if "images" in options.return_:
        arrays["images"] = reconstructions
    if "error_map" in options.return_:
        arrays["error_map"] = await service.run(images.size, drawn)
    if places:
        drawn = partial(places.overlays, images)
        if "overlay" in options.return_:
            arrays["overlay"] = await service.run(images.size, drawn)
        if len(images) == 1 and files and files[0]:
            outlined = bool(arrays["p_local"][0] <= options.false_positive_rate)
            drawn, size = partial(places.large_overlay, files[0], outlined), places.large_pixels
    return Answer(arrays, seed, more_fields, picture=drawn, picture_size=size)


def _judge(model: Model, found: Scores, rate: float) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The p-values and `is_anomaly` by name, and the fields of the answer that have no rows."""
    if model.calibration is None:
        return {}, {}
    p_values = model.calibration.p_values(found)
    arrays: dict[str, NDArray[Any]] = {f"p_{name}": p for name, p in p_values.items()}
    more_fields: dict[str, Any] = {"false_positive_rate": rate}
    if (smallest := model.calibration.smallest) <= rate:
        arrays["is_anomaly"] = p_values["value"] <= rate
        model.metrics.judged(arrays["is_anomaly"])
    else:
        more_fields["is_anomaly"] = None
        more_fields["note"] = (
            f"{model.manifest.reference} was calibrated on {model.calibration.n} images, so no "
            f"p-value is below {smallest:.2g}: ask for a higher false_positive_rate."
        )
    return arrays, more_fields


def _check(service: Service, model: Model, options: ScoreOptions, n: int) -> None:
    """A problem if the model cannot compute what is asked for, or if it would take too long."""
    reference = model.manifest.reference
    if model.manifest.likelihood is None:
        raise WrongModel(
            f"{reference} has no likelihood, so images have no ELBO; /reconstruct gives their squared error."
        )
    if model.calibration is None and options.false_positive_rate != FALSE_POSITIVE_RATE:
        raise WrongModel(
            f"{reference} has no calibration, so its false positives are unknown; leave out "
            "`false_positive_rate`, or publish a version with `vae-train complete`."
        )
    if "overlay" in options.return_ and not (model.calibration and model.calibration.usual):
        raise WrongModel(
            f"{reference} has no local score to draw; leave out `overlay`, or publish a version with "
            "`vae-train complete`."
        )
    most = SAMPLES * service.settings.max_samples
    if n * (options.k or 0) > most:
        raise TooLarge(
            f"{n:,} images with k = {options.k:,} samples each are more than the {most:,} of one request; "
            "send several."
        )


async def _bound(
    service: Service,
    model: Model,
    options: ScoreOptions,
    images: ByteImages,
    posterior: Posterior,
    seed: int,
) -> Doubles:
    """The importance-weighted bound with k samples of each image's posterior, in nats, float64 [n]."""
    k = options.k or 1
    bound = ImportanceBound(posterior, k, seed, first_row=FIRST_ROW + options.first * k)
    for row, z in bound.pieces(RUN):
        pixels = await model.pixels(z)
        weigh = partial(log_likelihood, model.manifest, images[row], pixels)
        bound.add(row, z, await service.run(pixels.size * LIKELIHOOD, weigh))
    return bound.value


def _error_map(images: ByteImages, others: ByteImages) -> ByteImages:
    """|image - other| of each pixel, averaged over channels; uint8 [n, h, w, 1]."""
    maps = [
        np.abs(a.astype(np.int16) - b).mean(axis=2, keepdims=True)
        for a, b in zip(images, others, strict=True)
    ]
    error_map: ByteImages = np.rint(np.stack(maps)).astype(np.uint8)
    return error_map


def _arrays(its: Manifest) -> dict[str, Array]:
    names = ["elbo", "distortion", "rate", "error"] + (["p_value"] if its.calibration else [])
    return {name: Array(np.float32) for name in names}


SCORE = Operation(
    "score",
    score,
    ScoreOptions,
    ScoreAnswer,
    Inputs.IMAGES,
    Outputs.PICTURES,
    requests=lambda _: [
        Example("file", "An image file in base64", {"images": [SQUARE]}),
        Example(
            "all",
            "With the importance-weighted bound, the reconstruction and the error of each pixel",
            {"images": [SQUARE], "k": 8, "seed": 7, "return": ["images", "error_map"]},
        ),
    ],
    answers=lambda its: [
        Example(
            "anomaly",
            "An image of another kind than the model's",
            {
                "model": its.reference,
                "elbo": [-5310.2],
                "distortion": [5187.9],
                "rate": [122.3],
                "log_prior": [-61.4],
                "error": [0.021],
                "local": [9.3],
                "where": [[41, 60, 58, 74]],
                "p_value": [0.0005],
                "p_elbo": [0.0002],
                "p_distortion": [0.0002],
                "p_rate": [0.14],
                "p_prior": [0.002],
                "p_error": [0.0002],
                "p_local": [0.0001],
                "is_anomaly": [True],
                "false_positive_rate": 0.05,
                "seed": 7,
            },
        )
    ],
    takes_files=True,
    arrays=_arrays,
    available=lambda its: its.likelihood is not None,
)
