"""How unusual an image is among held-out images of the same kind.

A bundle's calibration.npz has the sorted scores of validation images. A p-value is a rank among them: the
share of held-out images that the model explains as badly as this one, or worse.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.files import Bundle, BundleError
from vaeserve.bundle.scores import Scores


class Calibration(NamedTuple):
    """Scores of m held-out images, and their surprise among themselves; each float32 [m], ascending."""

    elbo: Floats
    distortion: Floats
    rate: Floats
    log_prior: Floats
    error: Floats
    surprise: Floats

    @property
    def smallest(self) -> float:
        """The smallest p-value that an image can have: 1 / (1 + m)."""
        return 1 / (1 + len(self.elbo))

    def p_values(self, scores: Scores) -> dict[str, Doubles]:
        """(1 + the number of held-out images that are as unusual) / (1 + m) of each image, float64 [n].

        A low `elbo` or `log_prior` is unusual, and so is a high `distortion`, `rate` or `error`. `value`
        combines two scores that fail on different images: the ELBO misses a letter that the model
        reconstructs as well as a digit, the prior misses a blank image. It ranks the surprise, -log of the
        smaller of their two p-values.
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
    """Make a calibration of the scores of held-out images."""

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


def read_calibration(bundle: Bundle) -> Calibration | None:
    """The calibration of a bundle, None where it has none; BundleError for a bad file."""
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
