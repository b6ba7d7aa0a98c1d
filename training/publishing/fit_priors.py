"""Fits priors after training: Gaussian mixtures on the latents that the encoder actually uses.

A VAE trained under N(0, I) has regions where the prior samples and to which no image is encoded. A density
fitted to samples of q(z|x) avoids them and costs a few hundred kilobytes (Ghosh et al., arXiv 1903.12436). A
density fitted to the images of one label samples that label, although training never saw the labels.
"""

import math
import warnings
from pathlib import Path

import numpy as np

from training.config import TrainConfig
from training.data.binarised import model_inputs
from training.data.images import Images, Indices
from training.evaluation.parts import Parts
from vaeserve.bundle.arrays import Doubles
from vaeserve.bundle.batched import encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.prior import MIXTURE_FILE, Mixture, write_prior

COMPONENTS = (1, 5, 10, 20, 50)  # 100 on MNIST: 0.6 nats better than 50, and three times the time
MOST_COMPONENTS = COMPONENTS[-1]
FEWEST_SAMPLES = 20_000  # small sets give several samples of each posterior
MOST_SAMPLES = 30_000  # more make the fit slower and no better
FEWEST_OF_LABEL = 2_000  # samples for a mixture of one label
MOST_OF_LABEL = 10  # components for one label
FEWEST_IMAGES = {"train": 20, "validation": 2}  # of a label that gets a mixture
MOST_FACTORS = 2_000_000  # numbers in the Cholesky factors of all components, 8 MB; twice with labels
MOST_LABELS = 100  # each costs a fit, and space in the bundle


def write_fitted_prior(
    engine: Engine, config: TrainConfig, data: Images, folder: Path, optional: Parts
) -> None:
    """Write prior.npz: a mixture fitted to samples of q(z|x) of all images, and one for each common label.

    Raises ValueError where no mixture can be fitted; a label whose own cannot is left out.
    """
    parts = {
        "train": np.random.default_rng(config.seed).permutation(data.split.train)[:MOST_SAMPLES],
        "validation": data.split.validation,
    }
    posteriors = {
        part: encode(engine, model_inputs(config.likelihood, data, rows, config.seed))
        for part, rows in parts.items()
    }

    def samples(part: str, fewest: int, label: int | None = None) -> Doubles:
        posterior = posteriors[part]
        if label is not None and data.labels is not None:
            posterior = posterior.take(data.labels[parts[part]] == label)
        draws = max(1, math.ceil(fewest / len(posterior.mean)))
        first = 1 if part == "train" else 1000
        z = np.concatenate([posterior.sample(first + each) for each in range(draws)])
        return z.reshape(len(z), -1).astype(np.float64)

    size = engine.manifest.latent.size

    def fitted(fewest: int, most: int, label: int | None = None) -> Mixture:
        train, validation = (samples(part, max(fewest, 4 * size), label) for part in parts)
        return fit_mixture(train, validation, most, config.seed)[0]

    fits = MOST_FACTORS // size**2
    mixture = fitted(FEWEST_SAMPLES, max(1, min(MOST_COMPONENTS, fits)))
    by_label = {}
    labels = common_labels(data, parts["train"], parts["validation"])
    if len(labels) > fits:
        optional.without(
            f"mixtures of its {len(labels)} labels",
            f"with {size} latent dimensions they would take {4e-6 * len(labels) * size**2:.2g} MB",
        )
        labels = []
    for label in labels:
        with optional.optional(f"the mixture of the label {label}"):
            by_label[label] = fitted(FEWEST_OF_LABEL, min(MOST_OF_LABEL, fits // len(labels)), label)
    write_prior(folder / MIXTURE_FILE, mixture, by_label)


def fit_mixture(train: Doubles, validation: Doubles, most: int, seed: int) -> tuple[Mixture, float]:
    """Fit a full-covariance mixture to samples z ~ q(z|x), float64 [n, d].

    The number of components, `most` at most, is chosen on validation: sizes are tried in ascending order
    until one is worse than the one before. Returns the mixture and the mean log density of the validation
    samples in nats. Raises ValueError for too few samples.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    best = None
    best_score = -np.inf
    for components in COMPONENTS:
        if components > most or components * 2 * train.shape[1] > len(train):
            break  # fewer than two samples for each direction of each component
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation decides, converged or not
            try:
                fitted = GaussianMixture(
                    components, max_iter=50, tol=1e-2, reg_covar=1e-5, random_state=seed
                ).fit(train)
            except ValueError:  # a component collapsed to fewer directions than there are
                break
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
    """The labels with enough images in these rows for a mixture; none where there are too many labels."""
    if data.labels is None or data.label_names is None or len(data.label_names) > MOST_LABELS:
        return []
    counts = {
        part: np.bincount(data.labels[rows], minlength=len(data.label_names))
        for part, rows in (("train", train), ("validation", validation))
    }
    enough = np.all([counts[part] >= fewest for part, fewest in FEWEST_IMAGES.items()], axis=0)
    return [int(label) for label in np.flatnonzero(enough)]
