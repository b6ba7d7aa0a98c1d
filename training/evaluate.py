"""How good a model is, computed from the exported graphs through the engine that serves them.

Every figure is a mean over all images of the test split, with its standard error, and is reported with
what it takes to compute it again. What needs fitting (PCA, probes) is fitted on train, its settings
chosen on validation; test is looked at once.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from service.runtime.bundle import LikelihoodSpec, Metric
from service.runtime.engine import Engine
from service.runtime.likelihood import log_prob
from service.runtime.prior import noise
from training import priors
from training.data import Images
from training.export import CHUNK, draw, encode, kl

Doubles = NDArray[np.float64]

ACTIVE = (
    0.01  # variance of the posterior mean above which a dimension is in use (Burda et al., arXiv 1509.00519)
)
INVERSE_PENALTIES = (0.1, 1.0, 10.0)  # of the linear probe; chosen on validation
NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures, and the test images' posterior means (float32 [n, *latent]) for pictures."""

    metrics: dict[str, Metric]
    means: NDArray[np.float32]


def evaluate(engine: Engine, data: Images, *, seed: int = 0) -> Evaluation:
    """Evaluate on `data.split.test`. `seed` draws z ~ q(z|x), and the pixels of a binarised test set.

    elbo = -(distortion + rate) in nats per image with one z each, under N(0, I); bits_per_dim from it;
    mse on [0, 1] of reconstructions from the posterior mean; where there are labels, the accuracy of a
    linear probe and of 5 nearest neighbours on the posterior mean. `*_pca`: PCA of equal dimension.
    hole: how much better the fitted mixture explains z ~ q(z|x) than N(0, I) does, in nats.
    """
    images = test_images(engine, data, seed)
    mean, logvar = encode(engine, images)
    metrics = elbo(engine, images, mean, logvar, seed) | {
        "mse": _mean(reconstruction_errors(engine, images, mean), seed=None),
        "active_units": Metric(value=active_units(mean), n=len(images)),
    }
    if engine.prior.mixture is not None:
        z = draw(mean, logvar, seed, 0).reshape(len(mean), -1).astype(np.float64)
        metrics["hole"] = _mean(priors.log_density(engine.prior.mixture, z) - priors.log_normal(z), seed)
    return Evaluation(metrics | _beside_pca(engine, data, mean, seed), mean)


def test_images(engine: Engine, data: Images, seed: int) -> NDArray[np.uint8]:
    """The test images; for a Bernoulli model of grey data, binarised once: x ~ Bernoulli(pixel)."""
    images = data.pixels[data.split.test]
    if _likelihood(engine).kind != "bernoulli" or data.binary:
        return images
    # Uniforms by way of the normals that are stable for ever: Φ is monotone, so compare on their scale.
    from scipy.special import ndtri

    drawn = np.empty_like(images)
    for row, image in enumerate(images):  # row by row: the noise of all at once would be eight times the set
        eps = noise(seed, range(row, row + 1), image.shape)[0]
        drawn[row] = np.where(eps < ndtri(image / 255.0), 255, 0)
    return drawn


def elbo(
    engine: Engine,
    images: NDArray[np.uint8],
    mean: NDArray[np.float32],
    logvar: NDArray[np.float32],
    seed: int,
) -> dict[str, Metric]:
    """elbo, distortion, rate (nats per image) and bits_per_dim of images uint8 [n, h, w, c]."""
    rates: Doubles = kl(mean, logvar).reshape(len(images), -1).sum(axis=1)
    distortions = np.concatenate(
        [
            -log_prob(
                _likelihood(engine),
                engine.manifest.image,
                images[at : at + CHUNK],
                engine.pixels(draw(mean[at : at + CHUNK], logvar[at : at + CHUNK], seed, at)),
            )
            for at in range(0, len(images), CHUNK)
        ]
    )
    bits = (distortions + rates) / (math.prod(images.shape[1:]) * math.log(2))
    return {
        "elbo": _mean(-distortions - rates, seed),
        "distortion": _mean(distortions, seed),
        "rate": _mean(rates, None),
        # Every likelihood here gives a probability of the pixels' levels, so bits are honest.
        "bits_per_dim": _mean(bits, seed),
    }


def reconstruction_errors(engine: Engine, images: NDArray[np.uint8], mean: NDArray[np.float32]) -> Doubles:
    """Mean squared error on [0, 1] of each image decoded from its posterior mean, float64 [n]."""
    return np.concatenate(
        [
            np.square(engine.pixels(mean[at : at + CHUNK]) - images[at : at + CHUNK] / 255.0).mean(
                axis=(1, 2, 3)
            )
            for at in range(0, len(images), CHUNK)
        ]
    )


def active_units(mean: NDArray[np.float32]) -> int:
    """How many latent dimensions the data move: Var_x(E[z|x]) > 0.01."""
    return int((mean.astype(np.float64).var(axis=0) > ACTIVE).sum())


def linear_probe(features: Mapping[str, Doubles], labels: Mapping[str, NDArray[np.int64]]) -> float:
    """Test accuracy of logistic regression on standardised features; its penalty is chosen on validation.

    Both maps have train, validation and test: [n, d] and [n].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features["train"])
    scaled = {part: scaler.transform(array) for part, array in features.items()}
    probes = [
        LogisticRegression(C=c, max_iter=500).fit(scaled["train"], labels["train"]) for c in INVERSE_PENALTIES
    ]
    best = max(probes, key=lambda probe: float(probe.score(scaled["validation"], labels["validation"])))
    return float(best.score(scaled["test"], labels["test"]))


def nearest_neighbours(features: Mapping[str, Doubles], labels: Mapping[str, NDArray[np.int64]]) -> float:
    """Test accuracy of the vote of the 5 nearest training images (Euclidean)."""
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(NEIGHBOURS, algorithm="brute").fit(features["train"], labels["train"])
    return float(votes.score(features["test"], labels["test"]))


def _beside_pca(engine: Engine, data: Images, test_mean: NDArray[np.float32], seed: int) -> dict[str, Metric]:
    """Probe, neighbours and MSE of PCA with as many components as the model has latents."""
    from sklearn.decomposition import PCA

    parts = {"train": data.split.train, "validation": data.split.validation, "test": data.split.test}
    flat = {part: data.pixels[rows].reshape(len(rows), -1) / 255.0 for part, rows in parts.items()}
    components = min(engine.manifest.latent.size, *flat["train"].shape)
    pca = PCA(components, random_state=seed).fit(flat["train"])
    codes = {part: pca.transform(array) for part, array in flat.items()}
    errors = np.square(pca.inverse_transform(codes["test"]) - flat["test"]).mean(axis=1)
    metrics = {"mse_pca": _mean(errors, None)}
    if data.labels is None:
        return metrics
    means = {
        part: encode(engine, data.pixels[rows])[0].reshape(len(rows), -1).astype(np.float64)
        for part, rows in parts.items()
        if part != "test"
    } | {"test": test_mean.reshape(len(test_mean), -1).astype(np.float64)}
    labels = {part: data.labels[rows] for part, rows in parts.items()}
    n = len(test_mean)
    return metrics | {
        "linear_probe": _share(linear_probe(means, labels), n),
        "linear_probe_pca": _share(linear_probe(codes, labels), n),
        "knn5": _share(nearest_neighbours(means, labels), n),
        "knn5_pca": _share(nearest_neighbours(codes, labels), n),
    }


def _likelihood(engine: Engine) -> LikelihoodSpec:
    likelihood = engine.manifest.likelihood
    if likelihood is None:
        raise ValueError(f"{engine.manifest.reference} says no likelihood, so it has no ELBO to evaluate")
    return likelihood


def _mean(values: Doubles, seed: int | None) -> Metric:
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Metric(value=float(values.mean()), n=len(values), seed=seed, se=se)


def _share(value: float, n: int) -> Metric:
    return Metric(value=value, n=n, se=math.sqrt(value * (1 - value) / n))
