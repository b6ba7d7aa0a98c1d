"""What the latent routes answer, as arrays."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Scores(NamedTuple):
    """How well the model explains each image: nats, and the mean squared error on [0, 1]; each [n].

    `p_value` is the share of normal images that are as unusual, `p_values` has those of the single scores
    too; `iwae` is the bound with k samples. None where the model is not calibrated, or k was not given.
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

    def columns(self) -> dict[str, NDArray[Any]]:
        """What there is for each image, by the names that the service gives it; p_value first."""
        named: dict[str, Floats | None] = {
            "p_value": self.p_value,
            "elbo": self.elbo,
            "distortion": self.distortion,
            "rate": self.rate,
            "log_prior": self.log_prior,
            "error": self.error,
            "iwae": self.iwae,
            **{f"p_{name}": p for name, p in self.p_values.items()},
        }
        return {name: column for name, column in named.items() if column is not None}


class Traversal(NamedTuple):
    """Images uint8 [dimensions, values, h, w, c]: each row changes one dimension, to each of `values`."""

    images: NDArray[np.uint8]
    dimensions: NDArray[np.int64]
    values: Floats
    model: str


class Sum(NamedTuple):
    """A weighted sum of points: its latents [*latent], and the image uint8 [h, w, c] that they decode to."""

    image: NDArray[np.uint8]
    latents: Floats
    model: str
