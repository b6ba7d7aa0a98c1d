"""How good a model is, computed from the exported graphs through the engine that serves them.

Every figure is a mean over images of the test split, with its standard error, and is reported with what it
takes to compute it again. What needs fitting (PCA, probes) is fitted on train, its settings chosen on
validation; test is looked at once. Images are read in chunks: a mapped set never is in memory as a whole.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.data.binarised import as_seen
from training.data.images import Images, Say, Slices
from training.evaluation.metrics import active_units, log_normal, mean_of, psnr, ssim
from training.evaluation.representation import beside_others
from training.evaluation.samples import sample_quality
from training.publishing.export import CHUNK, draw, encode
from vaeserve.bundle.calibration import kl
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.likelihood import log_prob
from vaeserve.bundle.manifest import LikelihoodSpec, Metric
from vaeserve.bundle.prior import log_standard_normal, noise

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

IWAE_K, IWAE_N = 100, 500  # samples per image, images: about a minute on one core at 28×28
MOST_SAMPLES = 1 << 24  # per image: each has its own row of noise


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures; for pictures the test images' posterior means, float32 [n, *latent], and their mean KL
    to N(0, I) in each dimension in nats, float64 [*latent]."""

    metrics: dict[str, Metric]
    means: Floats
    kl: Doubles


def evaluate(
    engine: Engine,
    data: Images,
    *,
    seed: int = 0,
    iwae_k: int = IWAE_K,
    iwae_n: int = IWAE_N,
    say: Say = lambda text: None,
) -> Evaluation:
    """Evaluate on `data.split.test`. `seed` draws z ~ q(z|x), and the pixels of a binarised test set.

    elbo = -(distortion + rate) in nats per image with one z each, under N(0, I); bits_per_dim from it;
    iwae: the importance-weighted bound of `iwae_n` random test images with `iwae_k` samples each, under
    N(0, I); elbo_prior and iwae_prior the same under the flow or the mixture that is served; mse, psnr, ssim
    on [0, 1] of reconstructions from the posterior mean; active_units; and what `beside_others` and
    `sample_quality` add.
    hole: how much better the served prior explains z ~ q(z|x) than N(0, I) does, in nats.
    """
    images = as_seen(_likelihood(engine).kind, data, data.split.test, seed)
    say(f"ELBO and reconstructions of {len(images):,} test images …")
    mean, logvar = encode(engine, images)
    metrics = elbo(engine, images, mean, logvar, seed)
    n = min(iwae_n, len(images))
    say(f"importance-weighted bound: {n:,} images, {iwae_k:,} samples each …")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:n])
    few = np.concatenate([images[row : row + 1] for row in chosen.tolist()])
    metrics |= iwae(engine, few, mean[chosen], logvar[chosen], iwae_k, seed)
    metrics |= reconstruction(engine, images, mean)
    metrics["active_units"] = Metric(value=active_units(mean), n=len(images))
    metrics |= beside_others(engine, data, seed, say)
    metrics |= sample_quality(engine, data, mean, seed, say)
    return Evaluation(metrics, mean, kl(mean, logvar).mean(axis=0))


def elbo(engine: Engine, images: Slices, mean: Floats, logvar: Floats, seed: int) -> dict[str, Metric]:
    """elbo, distortion, rate (nats per image) and bits_per_dim of images uint8 [n, h, w, c]; elbo_prior and
    hole, where another prior than N(0, I) is served: the one's rate is that of the same z."""
    rates: Doubles = kl(mean, logvar).reshape(len(images), -1).sum(axis=1)
    served = _log_served(engine)
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
    image = engine.manifest.image
    bits = (distortions + rates) / (image.height * image.width * image.channels * math.log(2))
    figures = {
        "elbo": mean_of(-distortions - rates, seed),
        "distortion": mean_of(distortions, seed),
        "rate": mean_of(rates),
        # Every likelihood here gives a probability of the pixels' levels, so bits are honest.
        "bits_per_dim": mean_of(bits, seed),
    }
    if served is not None:
        z = draw(mean, logvar, seed, 0)
        flat = z.reshape(len(z), -1).astype(np.float64)
        densities = np.concatenate([served(z[at : at + CHUNK]) for at in range(0, len(z), CHUNK)])
        entropy = 0.5 * (logvar.astype(np.float64) + math.log(2 * math.pi) + 1).reshape(len(z), -1).sum(
            axis=1
        )
        figures["elbo_prior"] = mean_of(-distortions + entropy + densities, seed)
        figures["hole"] = mean_of(densities - log_standard_normal(flat), seed)
    return figures


def iwae(
    engine: Engine, images: Slices, mean: Floats, logvar: Floats, k: int, seed: int
) -> dict[str, Metric]:
    """log(1/k Σ p(x|z) p(z) / q(z|x)) with k samples z ~ q(z|x), a lower bound on log p(x) in nats (Burda et
    al., arXiv 1509.00519), of images uint8 [n, h, w, c]. `iwae` under N(0, I); `iwae_prior` under the
    prior that is served, where that is another.

    Images are encoded once (mean, logvar: float32 [n, *latent]). The n·k samples are decoded in chunks that
    do not care where an image ends, and the sums are accumulated as float64 logarithms, so neither k nor the
    chunk need divide anything. Sample s of image r has its own noise: more samples keep the first ones.
    """
    if not 1 <= k <= MOST_SAMPLES:
        raise ValueError(f"k must be from 1 to {MOST_SAMPLES}, not {k}")
    n, likelihood, served = len(mean), _likelihood(engine), _log_served(engine)
    means, logvars = (array.reshape(n, -1).astype(np.float64) for array in (mean, logvar))
    total = {"iwae": np.full(n, -np.inf)}
    if served is not None:
        total["iwae_prior"] = np.full(n, -np.inf)
    for start in range(0, n * k, CHUNK):
        row, sample = np.divmod(np.arange(start, min(start + CHUNK, n * k)), k)
        first, last = int(row[0]), int(row[-1])
        eps = np.concatenate(
            [
                noise(seed, _noise_rows(image, sample[row == image]), mean.shape[1:])
                for image in range(first, last + 1)
            ]
        )
        z32 = (mean[row] + np.exp(logvar[row] / 2) * eps).astype(np.float32)
        z = z32.reshape(len(z32), -1).astype(np.float64)  # what is decoded is what is weighed
        decoded = engine.pixels(z32)
        shown = images[first : last + 1][row - first]
        log_ratio = log_prob(likelihood, engine.manifest.image, shown, decoded) - log_normal(
            z, means[row], logvars[row]
        )
        np.logaddexp.at(total["iwae"], row, log_ratio + log_standard_normal(z))
        if served is not None:
            np.logaddexp.at(total["iwae_prior"], row, log_ratio + served(z32))
    return {name: mean_of(sums - math.log(k), seed, k) for name, sums in total.items()}


def reconstruction(engine: Engine, images: Slices, mean: Floats) -> dict[str, Metric]:
    """mse, psnr (dB) and ssim on [0, 1] of images decoded from their posterior means."""
    errors, similarities = [], []
    for at in range(0, len(images), CHUNK):
        original = images[at : at + CHUNK] / 255.0
        restored = engine.pixels(mean[at : at + CHUNK])
        errors.append(np.square(restored - original).mean(axis=(1, 2, 3)))
        similarities.append(ssim(original, restored))
    mse: Doubles = np.concatenate(errors)
    return {
        "mse": mean_of(mse),
        "psnr": mean_of(psnr(mse)),
        "ssim": mean_of(np.concatenate(similarities)),
    }


def _log_served(engine: Engine) -> Callable[[Floats], Doubles] | None:
    """log p(z) under the prior that is served; None where that is N(0, I), or says no density."""
    prior = engine.prior
    known = prior.mixture is not None if prior.flow is None else prior.flow.log_density is not None
    return prior.log_density if known else None


def _noise_rows(image: int, samples: NDArray[np.int64]) -> range:
    """The rows of noise of these consecutive samples."""
    return range(image * MOST_SAMPLES + int(samples[0]), image * MOST_SAMPLES + int(samples[-1]) + 1)


def _likelihood(engine: Engine) -> LikelihoodSpec:
    likelihood = engine.manifest.likelihood
    if likelihood is None:
        raise ValueError(f"{engine.manifest.reference} says no likelihood, so it has no ELBO to evaluate")
    return likelihood
