"""How unusual an image is among held-out images of the same kind.

A bundle's calibration.npz has the sorted scores of validation images. A p-value is a rank among them: the
share of held-out images that the model explains as badly as this one, or worse. Beyond the worst of them it
is extrapolated.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.files import Bundle, BundleError
from vaeserve.bundle.local_error import UsualError
from vaeserve.bundle.scores import Scores

TAIL = 10  # the largest values, from which the tail beyond them is extrapolated
FEWEST = 50  # held-out images for that
USUAL = "usual_"  # before the names of the arrays of UsualError


def _log(values: Doubles) -> Doubles:
    logarithms: Doubles = np.log(np.maximum(values, 1e-12))
    return logarithms


# Each score as a number that is larger for a more unusual image. The logarithm makes a heavy tail exponential
# and a light one lighter than that: then fewer images are called unusual than might be.
UNUSUAL: dict[str, Callable[[Doubles], Doubles]] = {
    "elbo": lambda elbo: _log(-elbo),
    "distortion": _log,
    "rate": _log,
    "log_prior": lambda log_prior: -log_prior,
    "error": _log,
    "local": lambda local: local,
    "surprise": lambda surprise: surprise,
}
# The scores that decide, with their shares of the false positives. They fail on different images: the ELBO
# misses a letter that the model reconstructs as well as a digit, the prior a blank image, and both a scratch
# of ten pixels. With equal shares, letters are found a little better and scratches less well.
DECIDING = {"local": 3, "elbo": 1, "log_prior": 1}
P_NAMES = {"log_prior": "prior", "surprise": "value"}


@dataclass(frozen=True)
class Calibration:
    """Scores of m held-out images, and their surprise among themselves; each float32 [m], ascending.

    `local` and `usual` are None in bundles of versions that had no local score.
    """

    elbo: Floats
    distortion: Floats
    rate: Floats
    log_prior: Floats
    error: Floats
    surprise: Floats
    local: Floats | None = None
    usual: UsualError | None = None

    @property
    def n(self) -> int:
        """How many images it is made of."""
        return len(self.elbo)

    @property
    def smallest(self) -> float:
        """The smallest p-value that an image can have: 1 / (1 + m), or 0 where the tail is extrapolated."""
        return 0.0 if self.n >= FEWEST else 1 / (1 + self.n)

    @cached_property
    def _unusual(self) -> dict[str, Doubles]:
        """The held-out scores by name as larger for more unusual images, float64 [m], ascending."""
        arrays = {name: getattr(self, name) for name in UNUSUAL}
        return {
            name: np.sort(UNUSUAL[name](array.astype(np.float64)))
            for name, array in arrays.items()
            if array is not None
        }

    def p_values(self, scores: Scores) -> dict[str, Doubles]:
        """(1 + the number of held-out images that are as unusual) / (1 + m) of each image, float64 [n].

        Less for an image that is more unusual than all of them, if they are at least 50. A low `elbo` or
        `log_prior` is unusual, and so is a high `distortion`, `rate`, `error` or `local`. `value` combines
        those of DECIDING: it ranks the surprise, -log of the smallest of their p-values by share.
        """
        p_values = {}
        for name, array in scores.by_name.items():
            if (held_out := self._unusual.get(name)) is not None:
                # Compared in the precision that is stored.
                values = UNUSUAL[name](array.astype(np.float32).astype(np.float64))
                p_values[name] = _p_values(held_out, values)
        value = _p_values(self._unusual["surprise"], _surprise(p_values).astype(np.float32))
        return {"value": value} | {P_NAMES.get(name, name): p for name, p in p_values.items()}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays of calibration.npz."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "usual"}
        usual = {} if self.usual is None else self.usual._asdict()
        prefixed = {USUAL + name: array for name, array in usual.items()}
        return {name: array for name, array in (found | prefixed).items() if array is not None}


def calibrate(scores: Scores, usual: UsualError | None = None) -> Calibration:
    """Make a calibration of the scores of held-out images. `usual`: with which their `local` was computed."""

    def ascending(values: NDArray[np.floating]) -> Floats:
        return np.sort(values.astype(np.float32))

    stored = {name: array.astype(np.float32).astype(np.float64) for name, array in scores.by_name.items()}
    among = {name: _among_themselves(UNUSUAL[name](array)) for name, array in stored.items()}
    return Calibration(
        **{name: ascending(array) for name, array in scores.by_name.items()},
        surprise=ascending(_surprise(among)),
        usual=usual,
    )


def read_calibration(bundle: Bundle) -> Calibration | None:
    """The calibration of a bundle, None where it has none; BundleError for a bad file."""
    name = bundle.manifest.calibration
    if name is None:
        return None
    arrays = bundle.arrays(name)
    m = arrays["elbo"].size if "elbo" in arrays else 0
    found: dict[str, Any] = {}
    for key in UNUSUAL:
        array = arrays.get(key)
        if array is None and key == "local":
            continue
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
        found[key] = array
    if "local" in found:
        try:
            found["usual"] = UsualError.checked(
                {key.removeprefix(USUAL): array for key, array in arrays.items()}, bundle.manifest.image.shape
            )
        except ValueError as error:
            raise BundleError(f"{bundle.path / name}: {USUAL}{error}; publish the model again") from error
    return Calibration(**found)


def _surprise(p_values: dict[str, Doubles]) -> Doubles:
    deciding = [p_values[name] / share for name, share in DECIDING.items() if name in p_values]
    surprise: Doubles = -np.log(np.minimum.reduce(deciding))
    return surprise


def _p_values(held_out: Doubles, values: Doubles | Floats) -> Doubles:
    """(1 + #{h ≥ v}) / (1 + m) of each value, and beyond the largest h the tail; float64 [n]."""
    m = len(held_out)
    p = (m + 1 - np.searchsorted(held_out, values, side="left")).astype(np.float64) / (m + 1)
    beyond = values > held_out[-1]
    if m >= FEWEST and beyond.any():
        p[beyond] = np.minimum(p[beyond], _tail(held_out, values[beyond]))
    return p


def _among_themselves(values: Doubles) -> Doubles:
    """The p-value of each of m values among the m - 1 others."""
    m = len(values)
    ordered = np.sort(values)
    p = (m - np.searchsorted(ordered, values, side="left")).astype(np.float64) / m
    if m > FEWEST and ordered[-1] > ordered[-2]:
        largest = values == ordered[-1]
        p[largest] = np.minimum(p[largest], _tail(ordered[:-1], ordered[-1:]))
    return p


def _tail(held_out: Doubles, values: Doubles | Floats) -> Doubles:
    """P(a further value ≥ v), if what lies above the eleventh largest of m is exponential.

    The predictive distribution, so it is exact for k = 10 excesses with the sum S: (k + 1) / (m + 1) is the
    probability to lie above, and (1 + x / S)^-k that of an excess over x.
    """
    above, *largest = held_out[-TAIL - 1 :]
    total = max(float(np.sum(np.array(largest) - above)), 1e-12)
    tail: Doubles = (TAIL + 1) / (len(held_out) + 1) * (1 + (values - above) / total) ** -float(TAIL)
    return tail
