"""How well a model explains an image, and how unusual that is among the images it was held out from.

A bundle's calibration.npz has the sorted scores of validation images. A p-value is a rank among them: the
share of normal images that the model explains as badly as this one or worse.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.likelihood import log_prob
from vaeserve.bundle.manifest import Bundle, BundleError, ImageSpec, LikelihoodSpec, Manifest
from vaeserve.bundle.prior import Prior

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


PIECE = 1 << 18  # pixels that are scored at once


class Scores(NamedTuple):
    """Of each image: -log p(x|z), KL(q(z|x) ‖ N(0, I)) and log p(z) of the posterior mean under the served
    prior, in nats, float64 [n]; and the mean squared error of the reconstruction on [0, 1], float32 [n]."""

    distortion: Doubles
    rate: Doubles
    log_prior: Doubles
    error: Floats

    @property
    def elbo(self) -> Doubles:
        """The evidence lower bound in nats, with one z for each image."""
        return -(self.distortion + self.rate)


def kl(mean: Floats, logvar: Floats) -> Doubles:
    """KL(q(z|x) ‖ N(0, I)) of each dimension in nats, float64 [n, *latent]."""
    mean64, logvar64 = mean.astype(np.float64), logvar.astype(np.float64)
    return 0.5 * (np.square(mean64) + np.exp(logvar64) - 1 - logvar64)


def squared_error(images: ByteImages, others: ByteImages) -> Floats:
    """Mean squared error on [0, 1] of each pair of uint8 [h, w, c]; row by row: no large float array."""
    errors = [
        np.square(a.astype(np.float32) - b).mean() / 255**2 for a, b in zip(images, others, strict=True)
    ]
    return np.array(errors, np.float32)


def score(
    manifest: Manifest,
    images: ByteImages,
    posterior: tuple[Floats, Floats],
    pixels: Floats,
    reconstructions: ByteImages,
    log_prior: Doubles,
) -> Scores:
    """`posterior`: mean and logvar, float32 [n, *latent]. `pixels` float32 [n, h, w, c] are decoded from one
    z ~ q(z|x) each, `reconstructions` uint8 [n, h, w, c] from the means.

    ValueError for a model without a likelihood.
    """
    if manifest.likelihood is None:
        raise ValueError(f"{manifest.reference} has no likelihood")
    return Scores(
        distortion=-_log_likelihood(manifest.likelihood, manifest.image, images, pixels),
        rate=kl(*posterior).reshape(len(images), -1).sum(axis=1),
        log_prior=log_prior,
        error=squared_error(images, reconstructions),
    )


def log_weights(
    manifest: Manifest, images: ByteImages, posterior: tuple[Floats, Floats], z: Floats, pixels: Floats
) -> Doubles:
    """log p(x|z) p(z) / q(z|x) with p(z) = N(0, I), of one z and its pixels for each image: nats [n].

    The mean of the exponentials over many z is the importance-weighted estimate of p(x).
    """
    if manifest.likelihood is None:
        raise ValueError(f"{manifest.reference} has no likelihood")
    mean, logvar, drawn = (array.reshape(len(z), -1).astype(np.float64) for array in (*posterior, z))
    ratio = 0.5 * (np.square(drawn - mean) * np.exp(-logvar) + logvar - np.square(drawn)).sum(axis=1)
    total: Doubles = _log_likelihood(manifest.likelihood, manifest.image, images, pixels) + ratio
    return total


class Calibration(NamedTuple):
    """Scores of m held-out images, and how unusual they are among themselves; each float32 [m], ascending."""

    elbo: Floats
    distortion: Floats
    rate: Floats
    log_prior: Floats
    error: Floats
    surprise: Floats

    def p_values(self, scores: Scores) -> dict[str, Doubles]:
        """Of each image, (1 + how many held-out images are as unusual) / (1 + m), float64 [n].

        Unusual is a low `elbo` or `log_prior`, and a high `distortion`, `rate` or `error`. `value` joins two
        that fail on different images: the ELBO misses a letter that the model draws as well as any digit, the
        prior misses a blank image. It ranks the smaller of their two p-values, -log of which is the surprise.
        """
        found = {
            "elbo": _share_above(-self.elbo[::-1], -scores.elbo),
            "distortion": _share_above(self.distortion, scores.distortion),
            "rate": _share_above(self.rate, scores.rate),
            "prior": _share_above(-self.log_prior[::-1], -scores.log_prior),
            "error": _share_above(self.error, scores.error),
        }
        return {"value": _share_above(self.surprise, _surprise(found)), **found}


def calibrate(scores: Scores) -> Calibration:
    """The calibration that the scores of held-out images make."""

    def ascending(values: NDArray[np.floating]) -> Floats:
        return np.sort(values.astype(np.float32))

    found = Calibration(
        elbo=ascending(scores.elbo),
        distortion=ascending(scores.distortion),
        rate=ascending(scores.rate),
        log_prior=ascending(scores.log_prior),
        error=ascending(scores.error),
        surprise=np.zeros(len(scores.rate), np.float32),
    )
    return found._replace(surprise=ascending(_surprise(found.p_values(scores))))


def _surprise(p_values: dict[str, Doubles]) -> Doubles:
    surprise: Doubles = -np.log(np.minimum(p_values["elbo"], p_values["prior"]))
    return surprise


def _log_likelihood(
    likelihood: LikelihoodSpec, spec: ImageSpec, images: ByteImages, pixels: Floats
) -> Doubles:
    """`log_prob` in pieces: it works in float64 on a dozen arrays of the size that it is given."""
    step = max(1, PIECE // images[0].size)
    return np.concatenate(
        [
            log_prob(likelihood, spec, images[start : start + step], pixels[start : start + step])
            for start in range(0, len(images), step)
        ]
    )


def read_calibration(bundle: Bundle) -> Calibration | None:
    """What a bundle has of it; BundleError when the file is not what it should be."""
    name = bundle.manifest.calibration
    if name is None:
        return None
    arrays = bundle.arrays(name)
    m = arrays["elbo"].size if "elbo" in arrays else 0
    for key in Calibration._fields:
        array = arrays.get(key)
        if (
            m == 0
            or array is None
            or array.dtype != np.float32
            or array.shape != (m,)
            or not np.isfinite(array).all()
            or (np.diff(array) < 0).any()
        ):
            raise BundleError(
                f"{bundle.path / name}: {key} must be float32 [m], finite and in ascending order; "
                "publish the model again"
            )
    return Calibration(**{key: arrays[key] for key in Calibration._fields})


def _share_above(ascending: Floats, values: NDArray[np.floating]) -> Doubles:
    """(1 + #{s ≥ v}) / (1 + m), compared in the precision that is stored."""
    below = np.searchsorted(ascending, values.astype(np.float32), side="left")
    return (len(ascending) + 1 - below).astype(np.float64) / (len(ascending) + 1)
