"""The approximate posterior q(z|x) of a batch of images: a Gaussian with a diagonal covariance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.noise import noise


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag(exp(logvar))), each float32 [n, *latent]."""

    mean: Floats
    logvar: Floats

    def sample(self, seed: int, rows: Sequence[int] | None = None) -> Floats:
        """Draw one z for each image, float32 [n, *latent], with the noise of `rows` (default: 0 … n - 1)."""
        rows = range(len(self.mean)) if rows is None else rows
        return self.at(noise(seed, rows, self.mean.shape[1:]))

    def at(self, eps: Floats) -> Floats:
        """z = mean + exp(logvar / 2) · eps, float32 [n, *latent], for given noise of that shape."""
        z: Floats = self.mean + np.exp(self.logvar * np.float32(0.5)) * eps
        return z

    def take(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> "Posterior":
        """The posteriors of some of the images; an image may be repeated."""
        return Posterior(self.mean[rows], self.logvar[rows])

    def kl(self) -> Doubles:
        """KL(q(z|x) ‖ N(0, I)) of each dimension in nats, float64 [n, *latent]."""
        mean, logvar = self.mean.astype(np.float64), self.logvar.astype(np.float64)
        return 0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)
