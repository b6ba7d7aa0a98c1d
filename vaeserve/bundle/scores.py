"""How well a model explains images: distortion, rate, log prior, and the importance-weighted bound."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import ByteImages, Doubles, Floats
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.noise import noise
from vaeserve.bundle.posterior import Posterior


class Scores(NamedTuple):
    """Scores of n images, in nats, float64 [n]; `error` float32 [n].

    distortion: -log p(x|z). rate: KL(q(z|x) ‖ N(0, I)). log_prior: log p(z) of the posterior mean under the
    served prior. error: mean squared error of the reconstruction on [0, 1]. local: how unusual the error is
    in the most unusual place, in standard deviations; None where that is not known.
    """

    distortion: Doubles
    rate: Doubles
    log_prior: Doubles
    error: Floats
    local: Doubles | None = None

    @property
    def elbo(self) -> Doubles:
        """The evidence lower bound under N(0, I) in nats, with one z for each image."""
        return -(self.distortion + self.rate)

    @property
    def by_name(self) -> dict[str, NDArray[np.floating]]:
        """All scores that there are, the ELBO first."""
        arrays = {"elbo": self.elbo} | self._asdict()
        return {name: array for name, array in arrays.items() if array is not None}


def score(
    manifest: Manifest,
    images: ByteImages,
    posterior: Posterior,
    pixels: Floats,
    reconstructions: ByteImages,
    log_prior: Doubles,
    local: Doubles | None = None,
) -> Scores:
    """Score images uint8 [n, h, w, c]; ValueError for a model without a likelihood.

    `pixels` float32 [n, h, w, c] are decoded from one z ~ q(z|x) each, `reconstructions` uint8 [n, h, w, c]
    from the posterior means. `log_prior` float64 [n] is `Prior.log_density` of those means, `local` is
    `UsualError.local` of those reconstructions.
    """
    return Scores(
        distortion=-log_likelihood(manifest, images, pixels),
        rate=posterior.kl().reshape(len(images), -1).sum(axis=1),
        log_prior=log_prior,
        error=squared_error(images, reconstructions),
        local=local,
    )


def log_likelihood(manifest: Manifest, images: ByteImages, pixels: Floats) -> Doubles:
    """log p(x|z) in nats, float64 [n], of the model's likelihood; ValueError where it has none."""
    if manifest.likelihood is None:
        raise ValueError(f"{manifest.reference} has no likelihood, so its images have no ELBO")
    return manifest.likelihood.log_prob(images, pixels, manifest.image.levels)


def squared_error(images: ByteImages, others: ByteImages) -> Floats:
    """Mean squared error on [0, 1] of each pair of uint8 [h, w, c]."""
    # Row by row: the whole batch as floats would take four times its memory.
    errors = [
        np.square(a.astype(np.float32) - b).mean() / 255**2 for a, b in zip(images, others, strict=True)
    ]
    return np.array(errors, np.float32)


class ImportanceBound:
    """The importance-weighted bound log(1/k Σ p(x|z) p(z) / q(z|x)) with k samples z ~ q(z|x) an image.

    A lower bound on log p(x) in nats (Burda et al., arXiv 1509.00519). The caller decodes the latents of
    each of `pieces`, computes log p(x|z), and passes it to `add`. The sums are float64 logarithms, so neither
    k nor the size of a piece need divide anything.

    Sample s of image r has the noise of row `first_row` + r · `stride` + s; `stride` is k by default. With a
    fixed stride, more samples keep the first ones.
    """

    def __init__(
        self, posterior: Posterior, k: int, seed: int, *, first_row: int = 0, stride: int | None = None
    ) -> None:
        self.posterior, self.k, self.seed = posterior, k, seed
        self.first_row, self.stride = first_row, stride or k
        self._total = np.full(len(posterior.mean), -np.inf)

    def pieces(self, size: int) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yield up to `size` samples at a time: the image of each, int64 [m], and z, float32 [m, *latent]."""
        samples = len(self._total) * self.k
        for start in range(0, samples, size):
            image, sample = np.divmod(np.arange(start, min(start + size, samples)), self.k)
            rows = (self.first_row + image * self.stride + sample).tolist()
            yield image, self.posterior.take(image).at(noise(self.seed, rows, self.posterior.mean.shape[1:]))

    def add(
        self,
        image: NDArray[np.int64],
        z: Floats,
        log_likelihood: Doubles,
        log_prior: Doubles | None = None,
    ) -> None:
        """Add the samples of one piece; both densities are float64 [m]. `log_prior` None: that of N(0, I)."""
        mean, logvar, z64 = (
            array.reshape(len(z), -1).astype(np.float64) for array in (*self.posterior.take(image), z)
        )
        log_ratio = np.square(z64 - mean) * np.exp(-logvar) + logvar  # -2 log q(z|x), but for 2π
        if log_prior is None:
            log_weights = log_likelihood + 0.5 * (log_ratio - np.square(z64)).sum(axis=1)
        else:
            log_weights = log_likelihood + log_prior + 0.5 * (log_ratio + math.log(2 * math.pi)).sum(axis=1)
        np.logaddexp.at(self._total, image, log_weights)

    @property
    def value(self) -> Doubles:
        """The bound of each image in nats, float64 [n], once every piece has been added."""
        return self._total - math.log(self.k)
