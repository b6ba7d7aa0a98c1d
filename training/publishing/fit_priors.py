"""The priors fitted after training: Gaussian mixtures on the latents that the encoder really uses.

Trained with N(0, I), a VAE leaves holes: places where the prior samples and no image ever lay. A density
fitted to samples of q(z|x) closes them and costs a few hundred kilobytes (Ghosh et al., arXiv 1903.12436).
One fitted to the images of one label samples that label, though training never saw it.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

from training.data.images import Images, Indices
from vaeserve.bundle.prior import Mixture

COMPONENTS = (1, 5, 10, 20, 50)  # 100 on MNIST: 0.6 nats better than 50, and three times the time
MOST_COMPONENTS = COMPONENTS[-1]
FEWEST_SAMPLES = 20_000  # small sets give several samples of each posterior
MOST_SAMPLES = 30_000  # more make the fit slower and no better
FEWEST_OF_LABEL = 2_000  # samples for a mixture of one label
MOST_OF_LABEL = 10  # components of it
FEWEST_IMAGES = {"train": 20, "validation": 2}  # of a label, to say anything about it
MOST_LABELS = 100  # each takes a fit, and its place in the bundle
Doubles = NDArray[np.float64]


def fit_mixture(train: Doubles, validation: Doubles, most: int, seed: int) -> tuple[Mixture, float]:
    """Full-covariance mixture of samples z ~ q(z|x), float64 [n, d], of at most `most` components; how many
    is chosen on validation.

    Returns it with the mean log density of the validation samples, in nats. Sizes are tried in ascending
    order, until one is worse than the one before.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    best = None
    best_score = -np.inf
    for components in COMPONENTS:
        if components > most or components * 2 * train.shape[1] > len(train):
            break  # fewer than two samples for each direction of each component
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is as good, validation decides
            fitted = GaussianMixture(
                components, max_iter=50, tol=1e-2, reg_covar=1e-5, random_state=seed
            ).fit(train)
        score = float(fitted.score(validation))
        if score <= best_score:
            break
        best, best_score = fitted, score
    if best is None:
        raise ValueError(f"{len(train)} samples are too few for a density of {train.shape[1]} dimensions")
    mixture = Mixture(
        weights=best.weights_ / best.weights_.sum(),
        means=best.means_.astype(np.float32),
        factors=np.linalg.cholesky(best.covariances_).astype(np.float32),
    )
    return mixture, best_score


def common_labels(data: Images, train: Indices, validation: Indices) -> list[int]:
    """The labels with enough images in these rows for a mixture of their own; none where they are many."""
    if data.labels is None or data.label_names is None or len(data.label_names) > MOST_LABELS:
        return []
    counts = {
        part: np.bincount(data.labels[rows], minlength=len(data.label_names))
        for part, rows in (("train", train), ("validation", validation))
    }
    enough = np.all([counts[part] >= fewest for part, fewest in FEWEST_IMAGES.items()], axis=0)
    return [int(label) for label in np.flatnonzero(enough)]
