"""The named tuples that the methods of `Client` return. `model` is always name@version."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]


class Posterior(NamedTuple):
    """The posterior q(z|x) of each image: `mean` and `logvar`, float32 [n, *latent]."""

    mean: Floats
    logvar: Floats
    model: str


class Reconstructions(NamedTuple):
    """Reconstructed images uint8 [n, h, w, c], and their mean squared errors on [0, 1], float [n]."""

    images: ByteImages
    error: NDArray[np.floating]
    model: str


class Samples(NamedTuple):
    """Images uint8 [n, h, w, c] sampled from the prior. The same seed gives the same images."""

    images: ByteImages
    seed: int
    model: str


class Scores(NamedTuple):
    """How well the model explains each image: nats, and the mean squared error on [0, 1]; each [n].

    `p_value` is the share of held-out images that are at least as unusual; `p_values` has one array for each
    single score. `p_value` and `is_anomaly` are None where the model is not calibrated for them. `iwae` is
    the importance-weighted bound with k samples, None without k. `local` is how unusual the most unusual
    place is, and `where` int32 [n, 4] that place: left, top, right, bottom in pixels of the image; both are
    None where the model has no local score. `overlay` uint8 [n, h, w, 3] shows it, if it was asked for.
    """

    elbo: Floats
    distortion: Floats
    rate: Floats
    log_prior: Floats
    error: Floats
    p_value: Floats | None
    p_values: dict[str, Floats]
    iwae: Floats | None
    seed: int
    model: str
    local: Floats | None = None
    where: NDArray[np.int32] | None = None
    is_anomaly: NDArray[np.bool_] | None = None
    overlay: ByteImages | None = None

    def columns(self) -> dict[str, NDArray[Any]]:
        """The scores that are not None, under the names that the service gives them; p_value first."""
        first = ("p_value", "is_anomaly", "elbo", "distortion", "rate", "log_prior", "error")
        columns = {name: getattr(self, name) for name in (*first, "local", "where", "iwae")}
        columns |= {f"p_{name}": p for name, p in self.p_values.items()}
        return {name: column for name, column in columns.items() if column is not None}


class Traversal(NamedTuple):
    """Images uint8 [dimensions, values, h, w, c]: each row sets one latent dimension to each of `values`."""

    images: ByteImages
    dimensions: NDArray[np.int64]
    values: Floats
    model: str


class Sum(NamedTuple):
    """A weighted sum: its latents float32 [*latent], and the image uint8 [h, w, c] that they decode to."""

    image: ByteImages
    latents: Floats
    model: str
