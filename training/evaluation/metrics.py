"""Metrics of arrays: means with standard errors, image similarity, probes and nearest neighbours."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.manifest import Metric

Doubles = NDArray[np.float64]
Features = Mapping[str, NDArray[np.floating]]  # train, validation, test: [n, d]
Labels = Mapping[str, NDArray[np.int64]]

# Variance of the posterior mean above which a dimension is in use (Burda et al., arXiv 1509.00519).
ACTIVE = 0.01
INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of the linear probe; validation selects one
NEIGHBOURS = 5
SMALLEST_ERROR = 1e-10  # caps PSNR at 100 dB: one exact copy would make the mean infinite
# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
SSIM_WINDOW, SSIM_SIGMA, SSIM_K = 11, 1.5, (0.01, 0.03)


def mean_of(values: Doubles, seed: int | None = None, k: int | None = None) -> Metric:
    """The mean over images [n] with its standard error."""
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Metric(value=float(values.mean()), n=len(values), seed=seed, k=k, se=se)


def share_of(value: float, n: int) -> Metric:
    """A share of n images (an accuracy), with its binomial standard error."""
    return Metric(value=value, n=n, se=math.sqrt(value * (1 - value) / n))


def psnr(mse: Doubles) -> Doubles:
    """Peak signal-to-noise ratio in dB of images with these mean squared errors on [0, 1]."""
    decibels: Doubles = -10 * np.log10(np.maximum(mse, SMALLEST_ERROR))
    return decibels


def ssim(images: NDArray[np.floating], others: NDArray[np.floating]) -> Doubles:
    """Structural similarity of pairs of images [n, h, w, c] on [0, 1], float64 [n] (Wang et al. 2004).

    The window is Gaussian, 11×11 with σ = 1.5, and stays inside the image; colour channels are averaged. For
    images with a side below 11, the side of the window is the largest odd number that fits.
    """
    from scipy.ndimage import correlate1d

    side = min(SSIM_WINDOW, *images.shape[1:3])
    radius = (side - 1) // 2
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    inside = slice(radius, -radius or None)

    def blurred(array: Doubles) -> Doubles:
        smooth = correlate1d(correlate1d(array, weights, axis=1), weights, axis=2)
        return smooth[:, inside, inside]  # type: ignore[no-any-return]

    x, y = images.astype(np.float64), others.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K[0] ** 2, SSIM_K[1] ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    mean: Doubles = similarity.mean(axis=(1, 2, 3))
    return mean


def active_units(mean: NDArray[np.floating]) -> int:
    """The number of latent dimensions with Var_x(E[z|x]) > 0.01."""
    return int((mean.astype(np.float64).var(axis=0) > ACTIVE).sum())


def linear_probe(features: Features, labels: Labels) -> float:
    """Test accuracy of logistic regression on standardised features; validation selects the penalty."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features["train"])
    scaled = {part: scaler.transform(features[part]) for part in ("train", "validation")}
    fitted = _fitted_probe((scaled["train"], labels["train"]), (scaled["validation"], labels["validation"]))
    del scaled  # may be the pixels of many images; frees them before test is scaled
    return float(fitted.score(scaler.transform(features["test"]), labels["test"]))


def nearest_neighbours(features: Features, labels: Labels) -> float:
    """Test accuracy of a vote among the 5 nearest training images (Euclidean)."""
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(NEIGHBOURS, algorithm="brute").fit(features["train"], labels["train"])
    return float(votes.score(features["test"], labels["test"]))


def _fitted_probe(  # type: ignore[no-untyped-def]  # scikit-learn has no types
    train: tuple[NDArray[np.floating], NDArray[np.int64]],
    validation: tuple[NDArray[np.floating], NDArray[np.int64]],
):
    """The logistic regression with the best accuracy on validation."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probes = []
    for c in INVERSE_PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation decides, converged or not
            # A smaller tolerance doubles the time and does not change the fourth digit of the accuracy.
            probes.append(LogisticRegression(C=c, tol=1e-3, max_iter=500).fit(*train))
    return max(probes, key=lambda probe: float(probe.score(*validation)))
