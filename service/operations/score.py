"""POST /score: how well the model explains each image, and how unusual that is."""

import asyncio
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from service.core.admission import admit
from service.core.problems import TooLarge, WrongModel
from service.core.service import ServedModel, Service
from service.http.codecs import IMAGE_READERS, WRITERS, Answer
from service.http.endpoint import read, seed_of, service_of, wanted, write
from service.http.negotiation import JPEG, PNG
from service.operations.latent_fields import ScoreBody, ScoreOptions
from vaeserve.bundle.arrays import ByteImages
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import NO_DENSITY
from vaeserve.bundle.scores import ImportanceBound, Scores, log_likelihood, score

# One logarithm of a pixel's probability takes as long as printing this many numbers.
LIKELIHOOD = 20
# Of the importance-weighted bound: so many decoded images for each that /sample may give, in runs of so many.
SAMPLES, RUN = 16, 64
# Its noise is not that of the ELBO, whose row is the image's number: less than this.
FIRST_ROW = 1 << 32


async def score_images(request: Request, query: Annotated[ScoreOptions, Query()]) -> Response:
    """How well the model explains each image: distortion, rate and ELBO in nats, and p-values.

    Those say how unusual that is among images of its own kind. As a picture: the error of each pixel.
    """
    media_type = wanted(request, WRITERS)
    service = service_of(request)
    model, options, images = await read(request, query, ScoreBody, "images", IMAGE_READERS)
    _check(service, model, options, len(images))
    admit(len(images) * (2 + (options.k or 0)))
    seed = seed_of(options.seed)
    found, posterior, again = await scores_of(service, model, images, seed, options.first)
    arrays: dict[str, NDArray[Any]] = {"elbo": found.elbo} | found._asdict()
    if options.k:
        arrays["iwae"] = await _bound(service, model, images, posterior, options.k, seed, options.first)
    fields: dict[str, Any] = {}
    if model.calibration:
        p_values = model.calibration.p_values(found)
        arrays |= {f"p_{name}": p for name, p in p_values.items()}
        arrays["is_anomaly"] = p_values["value"] <= options.false_positive_rate
        fields["false_positive_rate"] = options.false_positive_rate
    arrays = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
    if "images" in options.return_:
        arrays["images"] = again
    if "error_map" in options.return_ or media_type in (PNG, JPEG):
        arrays["error_map"] = await service.run(images.size, lambda: _error_map(images, again))
    answer = Answer(model.manifest.reference, arrays, seed, fields, picture="error_map")
    return await write(request, media_type, answer)


async def scores_of(
    service: Service, model: ServedModel, images: ByteImages, seed: int, first: int = 0
) -> tuple[Scores, Posterior, ByteImages]:
    """The scores of the images, their posteriors, and their reconstructions.

    One z of each is drawn with the noise of the rows of `seed` from `first` on. WrongModel where the prior's
    density is not known.
    """
    reference, prior = model.manifest.reference, model.prior
    if prior is None:
        raise WrongModel(f"{reference} has no scores: it has no prior; publish it again with one.")
    if not prior.has_density:
        raise WrongModel(f"{reference} has no scores: {NO_DENSITY}; publish it again with it.")
    posterior = await model.encode(images)
    z = await service.run(
        posterior.mean.size, partial(posterior.sample, seed, range(first, first + len(images)))
    )
    pixels, again = await asyncio.gather(model.pixels(z), model.decode(posterior.mean))
    found = await service.run(
        images.size * LIKELIHOOD,
        lambda: score(model.manifest, images, posterior, pixels, again, prior.log_density(posterior.mean)),
    )
    model.metrics.reconstructed(found.error)
    return found, posterior, again


def _check(service: Service, model: ServedModel, options: ScoreOptions, n: int) -> None:
    """A problem if the model cannot tell what is asked for, or if it would take too long."""
    reference = model.manifest.reference
    if model.manifest.likelihood is None:
        raise WrongModel(
            f"{reference} says no likelihood, so images have no ELBO; /reconstruct gives their squared error."
        )
    if model.calibration is None and "false_positive_rate" in options.model_fields_set:
        raise WrongModel(
            f"{reference} has no calibration, so nothing is known of false positives; leave out "
            "`false_positive_rate`, or publish a version with `vae-train complete`."
        )
    most = SAMPLES * service.settings.max_samples
    if n * (options.k or 0) > most:
        raise TooLarge(
            f"{n:,} images with k = {options.k:,} samples each are more than the {most:,} of one request; "
            "send several."
        )


async def _bound(
    service: Service,
    model: ServedModel,
    images: ByteImages,
    posterior: Posterior,
    k: int,
    seed: int,
    first: int,
) -> NDArray[np.float64]:
    """log(1/k Σ p(x|z) p(z) / q(z|x)) with k samples z of each image's posterior, in nats, float64 [n]."""
    bound = ImportanceBound(posterior, k, seed, first_row=FIRST_ROW + first * k)
    for image, z in bound.pieces(RUN):
        pixels = await model.pixels(z)
        weigh = partial(log_likelihood, model.manifest, images[image], pixels)
        bound.add(image, z, await service.run(pixels.size * LIKELIHOOD, weigh))
    return bound.value


def _error_map(images: ByteImages, others: ByteImages) -> ByteImages:
    """|image - other| of each pixel, averaged over channels; uint8 [n, h, w, 1]."""
    maps = [
        np.abs(a.astype(np.int16) - b).mean(axis=2, keepdims=True)
        for a, b in zip(images, others, strict=True)
    ]
    error_map: ByteImages = np.rint(np.stack(maps)).astype(np.uint8)
    return error_map
