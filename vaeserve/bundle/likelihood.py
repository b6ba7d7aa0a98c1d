"""log p(x|z) in nats per image, from what the decoder gives: for scores, for evaluation, for outsiders.

The Gaussian is binned: P(x) is its mass over the grey level's bin, the end bins open. That makes it a
probability, so that bits per dimension are honest and σ → 0 cannot drive the value to infinity.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial.chebyshev import chebval
from numpy.typing import NDArray

from vaeserve.bundle.manifest import ImageSpec, LikelihoodSpec

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

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def log_prob(
    likelihood: LikelihoodSpec, image: ImageSpec, images: NDArray[np.uint8], pixels: NDArray[np.floating]
) -> Doubles:
    """log p(x|z) of each image, float64 [n], in nats, summed over its pixels.

    `images` uint8 [n, h, w, c] are x; `pixels` [n, h, w, c] in [0, 1] are the decoder's means for z.
    """
    mean = pixels.astype(np.float64)
    match likelihood.kind:
        case "bernoulli":
            each = _bernoulli(images, mean)
        case "gaussian":
            each = _binned(_log_normal_mass, images, mean, _scale(likelihood), image.levels)
        case "logistic":
            each = _binned(_log_logistic_mass, images, mean, _scale(likelihood), image.levels)
    total: Doubles = each.reshape(len(images), -1).sum(axis=1)
    return total


def _scale(likelihood: LikelihoodSpec) -> float:
    if likelihood.scale is None:
        raise ValueError(f"a {likelihood.kind} likelihood needs a scale; the manifest has none")
    return likelihood.scale


def _bernoulli(images: NDArray[np.uint8], mean: Doubles) -> Doubles:
    """x log p + (1 - x) log(1 - p). Exact for pixels 0 and 255; between them the usual cross-entropy."""
    x = images / 255.0
    # float32 sigmoids reach 0 and 1 exactly; one such pixel must cost much, not everything.
    p = np.clip(mean, 1e-7, 1 - 1e-7)
    return x * np.log(p) + (1 - x) * np.log1p(-p)


def _binned(
    log_mass: Callable[[Doubles, Doubles], Doubles],
    images: NDArray[np.uint8],
    mean: Doubles,
    scale: float,
    levels: int,
) -> Doubles:
    """Log mass of the bin that holds each pixel, of a distribution around `mean`; end bins open."""
    level = np.rint(images / 255.0 * (levels - 1))
    low = np.where(level == 0, -np.inf, ((level - 0.5) / (levels - 1) - mean) / scale)
    high = np.where(level == levels - 1, np.inf, ((level + 0.5) / (levels - 1) - mean) / scale)
    # Both distributions are symmetric: mirror the bins that lie left of the mean, so that the mass is
    # a difference of two small upper tails and not of two numbers near 1.
    left = low + high < 0
    near, far = np.where(left, -high, low), np.where(left, -low, high)
    return log_mass(near, far)


def _log_normal_mass(near: Doubles, far: Doubles) -> Doubles:
    return _log_difference(_log_normal_tail(near), _log_normal_tail(far))


def _log_logistic_mass(near: Doubles, far: Doubles) -> Doubles:
    return _log_difference(-np.logaddexp(0, near), -np.logaddexp(0, far))


def _log_difference(larger: Doubles, smaller: Doubles) -> Doubles:
    return larger + np.log1p(-np.exp(smaller - larger))


def _log_normal_tail(z: Doubles) -> Doubles:
    """log P(Z > z) of a standard normal, to 1e-9 relative over all of float64."""
    # An open end bin lies at infinity; 1e8 deviations away is as good, and has a logarithm.
    distance = np.minimum(np.abs(z), 1e8) / math.sqrt(2)
    t = 2 / (2 + distance)
    log_erfc = np.log(t) + chebval(2 * t - 1, _LOG_ERFC) - distance**2
    return np.where(z >= 0, log_erfc - math.log(2), np.log1p(-0.5 * np.exp(log_erfc)))
