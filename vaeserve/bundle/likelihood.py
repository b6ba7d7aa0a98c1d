"""Likelihoods p(x|z): the distribution of an image's pixels around what the decoder returns.

Each class is one likelihood: its name in the manifest (`kind`), its parameters, `log_prob` and `sample`.
The Gaussian and the logistic are binned: P(x) is the mass over the grey level's bin, the end bins open.
That makes it a probability, so bits per dimension are comparable, and σ → 0 cannot drive it to infinity.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.polynomial.chebyshev import chebval
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vaeserve.bundle.arrays import ByteImages, Doubles, Floats
from vaeserve.bundle.noise import noise, uniforms

PIECE = 1 << 18  # pixels computed at once: `log_prob` makes a dozen float64 arrays of that size

# log(erfc(z)·exp(z²)/t) as a Chebyshev series in 2t - 1, with t = 2/(2 + z), z ≥ 0: absolute error
# below 1e-15. Working with the logarithm keeps the far tails, where erfc itself is 0.
_LOG_ERFC = (
    -0.651326859890854717, 0.64196979235649026, 0.0194764732041858363, -0.00956151478680863164,
    -0.000946595344482036866, 0.000366839497852761452, 0.0000425233248069077716, -0.0000202785781125342432,
    -1.62429000464702551e-6, 1.3036558355805232e-6, 1.56264417220661432e-8, -8.52380959149265425e-8,
    6.5290544390988515e-9, 5.05934349555146894e-9, -9.91364156493033087e-10, -2.27365122293183586e-10,
    9.6467911020155268e-11, 2.39403808303911474e-12, -6.8860275264975534e-12, 8.94487927309072572e-13,
    3.13092139934295808e-13, -1.12708223613672524e-13, 3.81090525518923206e-16, 7.10609760361723699e-15,
    -1.5230282014571043e-15, -9.457494571291234e-17, 1.21023718922427899e-16, -2.81666308774717697e-17,
)  # fmt: skip


class _Likelihood(BaseModel, ABC):
    """What the likelihoods share. Images are uint8 [n, h, w, c] with `levels` distinct values a pixel."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    binary: ClassVar[bool] = False  # whether pixels are 0 or 1, so that grey images are binarised first
    kind: str  # declared here, so that it comes first in the manifest

    def log_prob(self, images: ByteImages, pixels: Floats, levels: int = 256) -> Doubles:
        """log p(x|z) of each image in nats, summed over its pixels, float64 [n].

        `pixels` [n, h, w, c] in [0, 1] are the decoder's means for z.
        """
        total = np.empty(len(images))
        step = max(1, PIECE // math.prod(images.shape[1:]))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            each = self._log_mass(images[part], pixels[part].astype(np.float64), levels)
            total[part] = each.reshape(len(each), -1).sum(axis=1)
        return total

    def mean(self, pixels: Floats) -> Floats:
        """E[x|z] on [0, 1], before rounding to levels: the decoder's pixels."""
        return pixels

    def sample(
        self, pixels: Floats, levels: int = 256, *, seed: int, rows: Sequence[int] | None = None
    ) -> ByteImages:
        """Draw x ~ p(x|z) for each of `pixels` [n, h, w, c], with the noise of `rows` (default 0 … n - 1)."""
        rows = range(len(pixels)) if rows is None else rows
        x = np.clip(self._draw(pixels.astype(np.float64), seed, rows), 0, 1)
        level = np.rint(x * (levels - 1))
        images: ByteImages = np.rint(level * (255 / (levels - 1))).astype(np.uint8)
        return images

    @abstractmethod
    def _log_mass(self, images: ByteImages, mean: Doubles, levels: int) -> Doubles:
        """log P of each pixel, in the shape of `mean`."""

    @abstractmethod
    def _draw(self, mean: Doubles, seed: int, rows: Sequence[int]) -> Doubles:
        """A value for each pixel, on [0, 1] or beyond, in the shape of `mean`."""


class Bernoulli(_Likelihood):
    """Each pixel is black or white, and white with the probability that the decoder returns."""

    binary: ClassVar[bool] = True
    kind: Literal["bernoulli"] = "bernoulli"
    scale: None = None

    @model_validator(mode="before")
    @classmethod
    def _has_no_scale(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("scale") is not None:
            raise ValueError("a bernoulli likelihood has no scale")
        return fields

    def _log_mass(self, images: ByteImages, mean: Doubles, levels: int) -> Doubles:
        """x log p + (1 - x) log(1 - p): exact for pixels 0 and 255, a cross-entropy between them."""
        x = images / 255.0
        # float32 sigmoids reach 0 and 1 exactly; one such pixel must cost much, but not infinity.
        p = np.clip(mean, 1e-7, 1 - 1e-7)
        return x * np.log(p) + (1 - x) * np.log1p(-p)

    def _draw(self, mean: Doubles, seed: int, rows: Sequence[int]) -> Doubles:
        return (_uniforms(mean.shape, seed, rows) <= mean).astype(np.float64)


class _Binned(_Likelihood):
    """A symmetric distribution around the decoder's pixels, with one `scale` on [0, 1] for all of them."""

    scale: float = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _has_scale(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("scale") is None:
            raise ValueError(f"a {cls.model_fields['kind'].default} likelihood needs a scale")
        return fields

    def _log_mass(self, images: ByteImages, mean: Doubles, levels: int) -> Doubles:
        """Log mass of the bin that holds each pixel; the end bins are open."""
        level = np.rint(images / 255.0 * (levels - 1))
        low = np.where(level == 0, -np.inf, ((level - 0.5) / (levels - 1) - mean) / self.scale)
        high = np.where(level == levels - 1, np.inf, ((level + 0.5) / (levels - 1) - mean) / self.scale)
        # The distribution is symmetric: mirror the bins left of the mean, so that the mass is a
        # difference of two small upper tails and not of two numbers near 1.
        left = low + high < 0
        near, far = np.where(left, -high, low), np.where(left, -low, high)
        larger, smaller = self._log_tail(near), self._log_tail(far)
        return larger + np.log1p(-np.exp(smaller - larger))

    @staticmethod
    @abstractmethod
    def _log_tail(z: Doubles) -> Doubles:
        """log P(Z > z) for location 0 and scale 1."""


class Gaussian(_Binned):
    """A normal distribution with standard deviation `scale`, binned to grey levels."""

    kind: Literal["gaussian"] = "gaussian"

    def _draw(self, mean: Doubles, seed: int, rows: Sequence[int]) -> Doubles:
        return mean + self.scale * noise(seed, rows, mean.shape[1:])

    @staticmethod
    def _log_tail(z: Doubles) -> Doubles:
        return _log_normal_tail(z)


class Logistic(_Binned):
    """A logistic distribution, binned to grey levels; its standard deviation is π/√3 · `scale`."""

    kind: Literal["logistic"] = "logistic"

    def _draw(self, mean: Doubles, seed: int, rows: Sequence[int]) -> Doubles:
        u = np.minimum(_uniforms(mean.shape, seed, rows), 1 - 2.0**-53)
        return mean + self.scale * (np.log(u) - np.log1p(-u))

    @staticmethod
    def _log_tail(z: Doubles) -> Doubles:
        return -np.logaddexp(0, z)


# A further likelihood is a class above and a member of this union.
Likelihood = Annotated[Bernoulli | Gaussian | Logistic, Field(discriminator="kind")]
LIKELIHOODS: dict[str, type[Bernoulli | Gaussian | Logistic]] = {
    each.model_fields["kind"].default: each for each in get_args(get_args(Likelihood)[0])
}


def _uniforms(shape: tuple[int, ...], seed: int, rows: Sequence[int]) -> Doubles:
    return uniforms(seed, rows, math.prod(shape[1:])).reshape(shape)


def _log_normal_tail(z: Doubles) -> Doubles:
    """log P(Z > z) of a standard normal, to 1e-9 relative over all of float64."""
    # An open end bin lies at infinity; 1e8 deviations away is as good, and has a logarithm.
    distance = np.minimum(np.abs(z), 1e8) / math.sqrt(2)
    t = 2 / (2 + distance)
    log_erfc = np.log(t) + chebval(2 * t - 1, _LOG_ERFC) - distance**2
    return np.where(z >= 0, log_erfc - math.log(2), np.log1p(-0.5 * np.exp(log_erfc)))
