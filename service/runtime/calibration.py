"""How well a model explains an image, and how unusual that is among the images it was held out from.

A bundle's calibration.npz has the sorted scores of validation images. A p-value is a rank among them: the
share of normal images that the model explains as badly as this one or worse.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.runtime.bundle import Bundle, BundleError, Manifest
from service.runtime.likelihood import log_prob

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Scores(NamedTuple):
    """Of each image: -log p(x|z) and KL(q(z|x) ‖ N(0, I)) in nats, float64 [n], and the mean squared error of
    its reconstruction on [0, 1], float32 [n]."""

    distortion: Doubles
    rate: Doubles
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
) -> Scores:
    """`posterior`: mean and logvar, float32 [n, *latent]. `pixels` float32 [n, h, w, c] are decoded from one
    z ~ q(z|x) each, `reconstructions` uint8 [n, h, w, c] from the means.

    ValueError for a model without a likelihood.
    """
    if manifest.likelihood is None:
        raise ValueError(f"{manifest.reference} has no likelihood")
    return Scores(
        distortion=-log_prob(manifest.likelihood, manifest.image, images, pixels),
        rate=kl(*posterior).reshape(len(images), -1).sum(axis=1),
        error=squared_error(images, reconstructions),
    )


class Calibration(NamedTuple):
    """Scores of m held-out images, each float32 [m] in ascending order."""

    elbo: Floats
    distortion: Floats
    rate: Floats
    error: Floats

    def p_values(self, scores: Scores) -> dict[str, Doubles]:
        """Of each image and score, (1 + how many held-out images are as unusual) / (1 + m), float64 [n].

        Unusual is a low ELBO, and a high distortion, rate or error. For an image like the held-out ones
        P(p ≤ t) ≤ t holds for every t exactly, however few of them there are.
        """
        return {
            "elbo": _share_above(-self.elbo[::-1], -scores.elbo),
            "distortion": _share_above(self.distortion, scores.distortion),
            "rate": _share_above(self.rate, scores.rate),
            "error": _share_above(self.error, scores.error),
        }


def calibrate(scores: Scores) -> Calibration:
    """The calibration that the scores of held-out images make."""
    return Calibration(
        *(
            np.sort(values.astype(np.float32))
            for values in (scores.elbo, scores.distortion, scores.rate, scores.error)
        )
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
