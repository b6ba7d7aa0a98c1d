"""Measures samples: are they like the data (precision), and do they cover the data (recall)?

Each metric is also computed for real images (training against test), the best possible value, and for
reconstructed training images, the practical limit of the same decoder. Reconstructions of the test images are
not a limit: pair by pair, they are closer to the test images than other real images are. The temperature is
1, because a lower one trades recall for precision.
"""

import numpy as np
from numpy.typing import NDArray

from training.data.binarised import model_inputs
from training.data.images import ByteImages, Images, Say, Subset
from training.evaluation.metrics import mean_of
from vaeserve.bundle.batched import decode, encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.manifest import Metric

MOST = 10_000  # images of each kind
MOST_COMPARED = 5_000  # images, when every pair is compared
MOST_SEARCHED = 1_000  # images whose nearest training image is searched for
NEAREST = (
    3  # neighbour that a ball extends to, for precision and recall (Kynkäänniemi et al., arXiv 1904.06991)
)
NEAREST_DENSE = 5  # for density and coverage (Naeem et al., arXiv 2002.09797)
SUBSETS, SUBSET = 10, 1000  # of the kernel distance
DUPLICATES = 0.01  # share of the test images that count as duplicates of another one

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating]


def sample_quality(engine: Engine, data: Images, means: Floats, seed: int, say: Say) -> dict[str, Metric]:
    """Compare samples, reconstructions and real images with the test images; empty without labels.

    Kinds, by suffix: none for samples of the served prior; `_normal` for samples of N(0, I), if another prior
    is served; `_reconstructions` of the test images; `_real` training images; `_restored` for reconstructions
    of these. Metrics: `frechet`, `kernel`, `precision`, `recall`, `density` and `coverage` in the features of
    a classifier of the training labels with accuracy `classifier`; `nearest` and `duplicates` in pixels.
    There is no `nearest_restored`, which would only be the reconstruction error.

    `means`: the posterior means of the test images, float32 [n, *latent].
    """
    from training.evaluation import classifier

    prior = engine.prior
    if prior is None or data.labels is None or len(np.unique(data.labels[data.split.train])) < 2:
        return {}
    say("samples, compared with reconstructions and real images …")
    rng = np.random.default_rng(seed)
    n = min(MOST, len(data.split.test), len(data.split.train))
    chosen = np.sort(rng.permutation(len(data.split.test))[:n])
    test = data.pixels[data.split.test[chosen]]
    train = np.sort(rng.permutation(data.split.train)[:n])
    likelihood = engine.manifest.likelihood
    inputs = model_inputs(likelihood.kind if likelihood else None, data, train, seed)
    kinds = {
        "": _decoded(engine, prior.sample(seed=seed, rows=range(n))),
        "_reconstructions": _decoded(engine, means[chosen]),
        "_restored": _decoded(engine, encode(engine, inputs)[0]),
        "_real": data.pixels[train],
    }
    if len(prior.kinds) > 1:
        kinds["_normal"] = _decoded(engine, prior.sample(seed=seed, rows=range(n), kind="normal"))
    network = classifier.train(data, seed)
    right = classifier.predict(network, test) == data.labels[data.split.test[chosen]]
    metrics = {"classifier": mean_of(right.astype(float), seed)}
    features = classifier.features(network, test)
    close = np.quantile(nearest_other(test[:MOST_COMPARED]), DUPLICATES)
    for kind, images in kinds.items():
        found = classifier.features(network, images)
        few, fakes = features[:MOST_COMPARED], found[:MOST_COMPARED]
        duplicates = nearest_other(images[:MOST_COMPARED]) < close
        searched = test if kind == "_real" else images
        figures = {"frechet": Metric(value=frechet(features, found), n=n, seed=seed)}
        figures["kernel"] = kernel(features, found, seed)
        for name, value in (precision_recall(few, fakes) | density_coverage(few, fakes)).items():
            figures[name] = Metric(value=value, n=len(fakes), seed=seed)
        if kind != "_restored":
            figures["nearest"] = mean_of(nearest_training(searched[:MOST_SEARCHED], data), seed)
        figures["duplicates"] = mean_of(duplicates.astype(float), seed)
        metrics |= {f"{name}{kind}": figure for name, figure in figures.items()}
    return metrics


def frechet(features: Doubles, others: Doubles) -> float:
    """The Fréchet distance |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of features [n, d] and [m, d].

    It falls as n grows, so compare it at equal n only.
    """
    first, second = np.cov(features, rowvar=False), np.cov(others, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    apart = np.square(features.mean(axis=0) - others.mean(axis=0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)


def kernel(features: Doubles, others: Doubles, seed: int) -> Metric:
    """The kernel distance: the mean unbiased MMD² under (fᵀg/d + 1)³ over random subsets, with its error.

    Its expectation does not depend on n (Bińkowski et al., arXiv 1801.01401).
    """
    rng = np.random.default_rng(seed)
    size = min(SUBSET, len(features), len(others))
    values = [
        mmd(rng.permutation(features)[:size], rng.permutation(others)[:size])
        for _ in range(SUBSETS if size < len(features) else 1)
    ]
    return mean_of(np.array(values), seed).model_copy(update={"n": len(others)})


def mmd(x: Doubles, y: Doubles) -> float:
    """Unbiased MMD² of two sets [n, d] under (fᵀg/d + 1)³."""
    n, d = x.shape
    within = [(kernels := (z @ z.T / d + 1) ** 3).sum() - np.trace(kernels) for z in (x, y)]
    return float(sum(within) / (n * (n - 1)) - 2 * ((x @ y.T / d + 1) ** 3).mean())


def precision_recall(real: Doubles, fakes: Doubles) -> dict[str, float]:
    """The share of fakes in the ball of a real point, and of real points in the ball of a fake.

    The ball of a point extends to its third neighbour.
    """
    between = distances(real, fakes)
    real_balls, fake_balls = (nth_nearest(points, NEAREST) for points in (real, fakes))
    return {
        "precision": float((between <= real_balls[:, None]).any(axis=0).mean()),
        "recall": float((between <= fake_balls[None, :]).any(axis=1).mean()),
    }


def density_coverage(real: Doubles, fakes: Doubles) -> dict[str, float]:
    """The mean number of real balls around a fake, over 5, and the share of real balls with a fake in them.

    The ball of a point extends to its fifth neighbour. The density of real images is about 1, more in dense
    regions.
    """
    inside = distances(real, fakes) <= nth_nearest(real, NEAREST_DENSE)[:, None]
    return {
        "density": float(inside.sum(axis=0).mean() / NEAREST_DENSE),
        "coverage": float(inside.any(axis=1).mean()),
    }


def nth_nearest(points: Doubles, nth: int) -> Doubles:
    """The distance of each point to its nth neighbour, [n]."""
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    nth_smallest: Doubles = np.partition(apart, nth - 1, axis=1)[:, nth - 1]
    return nth_smallest


def nearest_other(images: ByteImages) -> Doubles:
    """The distance of each image uint8 [n, h, w, c] to the nearest other one: root mean square on [0, 1]."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    root_mean: Doubles = nth_nearest(flat, 1) / np.sqrt(flat.shape[1])
    return root_mean


def nearest_training(images: ByteImages, data: Images) -> Doubles:
    """The distance of each image to the nearest training image: root mean square on [0, 1]."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    train, nearest = Subset(data.pixels, data.split.train), np.full(len(images), np.inf)
    for at in range(0, len(train), 4096):
        piece = train[at : at + 4096].reshape(-1, flat.shape[1]).astype(np.float32) / 255
        nearest = np.minimum(nearest, distances(flat, piece).min(axis=1))
    root_mean: Doubles = nearest / np.sqrt(flat.shape[1])
    return root_mean


def distances(points: Floats, others: Floats) -> Doubles:
    """Euclidean distances, [n, d] and [m, d] → [n, m]."""
    squares = np.square(points).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * points @ others.T
    apart: Doubles = np.sqrt(np.clip(squares, 0, None))
    return apart


def _decoded(engine: Engine, latents: Floats) -> ByteImages:
    z = latents.astype(np.float32)
    return decode(engine, z)
