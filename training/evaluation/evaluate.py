"""Evaluates a model on test images, from the exported graphs through the engine that serves them.

Every figure is a mean over images of the test split, with its standard error and with what is needed to
compute it again. PCA and probes are fitted on train, and their settings are chosen on validation; test is
used once. Images are read in chunks, so a memory-mapped set is never in memory as a whole.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.data.binarised import model_inputs
from training.data.images import Images
from training.evaluation.metrics import active_units, mean_of, psnr, ssim
from training.evaluation.parts import Parts
from training.evaluation.representation import compare_with_baselines
from training.evaluation.samples import sample_quality
from vaeserve.bundle.batched import CHUNK, ImageSource, encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.manifest import Metric
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import log_standard_normal
from vaeserve.bundle.scores import ImportanceBound, log_likelihood

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

IWAE_K, IWAE_N = 100, 500  # samples per image, images: about a minute on one core at 28×28
MOST_SAMPLES = 1 << 24  # per image; each sample has its own row of noise


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, and what its pictures need.

    `means`: the posterior means of the test images, float32 [n, *latent]; `kl`: their mean KL to N(0, I) in
    each dimension in nats, float64 [*latent].
    """

    metrics: dict[str, Metric]
    means: Floats
    kl: Doubles


def evaluate(
    engine: Engine,
    data: Images,
    parts: Parts | None = None,
    *,
    seed: int = 0,
    iwae_k: int = IWAE_K,
    iwae_n: int = IWAE_N,
) -> Evaluation:
    """Evaluate a model on `data.split.test`; `seed` fixes z ~ q(z|x) and the pixels of a binarised test set.

    - elbo = -(distortion + rate) in nats per image with one z each, under N(0, I); bits_per_dim from it.
    - iwae: the importance-weighted bound of `iwae_n` random test images with `iwae_k` samples each, under
      N(0, I).
    - elbo_prior, iwae_prior: the same under the served flow or mixture. prior_gap: log p(z) of z ~ q(z|x)
      under that prior minus that under N(0, I), in nats.
    - mse, psnr, ssim: of reconstructions from the posterior mean, on [0, 1]. active_units.
    - the metrics of `compare_with_baselines` and `sample_quality`.

    `parts` says what is computed, and may go without what cannot be; by default an error is raised. Raises
    ValueError for a model without a likelihood.
    """
    parts = parts or Parts(all_needed=True)
    if engine.manifest.likelihood is None:
        raise ValueError(f"{engine.manifest.reference} has no likelihood, so it has no ELBO to evaluate")
    images = model_inputs(engine.manifest.likelihood.kind, data, data.split.test, seed)
    parts.say(f"ELBO and reconstructions of {len(images):,} test images …")
    posterior = encode(engine, images)
    mean = posterior.mean
    metrics = elbo(engine, images, posterior, seed)
    n = min(iwae_n, len(images))
    parts.say(f"importance-weighted bound: {n:,} images, {iwae_k:,} samples each …")
    with parts.optional("the importance-weighted bound"):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:n])
        few = np.concatenate([images[row : row + 1] for row in chosen.tolist()])
        metrics |= iwae(engine, few, posterior.take(chosen), iwae_k, seed)
    metrics |= reconstruction(engine, images, mean)
    metrics["active_units"] = Metric(value=active_units(mean), n=len(images))
    with parts.optional("the comparison with PCA and raw pixels"):
        metrics |= compare_with_baselines(engine, data, seed, parts.say)
    with parts.optional("the figures of its samples"):
        metrics |= sample_quality(engine, data, mean, seed, parts.say)
    return Evaluation(metrics, mean, posterior.kl().mean(axis=0))


def elbo(engine: Engine, images: ImageSource, posterior: Posterior, seed: int) -> dict[str, Metric]:
    """elbo, distortion, rate (nats per image) and bits_per_dim of images uint8 [n, h, w, c].

    elbo_prior and prior_gap are added when a prior other than N(0, I) is served; they use the same z.
    """
    rates: Doubles = posterior.kl().reshape(len(images), -1).sum(axis=1)
    served = _log_served(engine)
    z = posterior.sample(seed)
    distortions = np.concatenate(
        [
            -log_likelihood(engine.manifest, images[at : at + CHUNK], engine.pixels(z[at : at + CHUNK]))
            for at in range(0, len(images), CHUNK)
        ]
    )
    bits = (distortions + rates) / (math.prod(engine.manifest.image.shape) * math.log(2))
    figures = {
        "elbo": mean_of(-distortions - rates, seed),
        "distortion": mean_of(distortions, seed),
        "rate": mean_of(rates),
        # Every likelihood gives probabilities of the pixels' levels, not densities, so bits are comparable.
        "bits_per_dim": mean_of(bits, seed),
    }
    if served is not None:
        flat = z.reshape(len(z), -1).astype(np.float64)
        densities = np.concatenate([served(z[at : at + CHUNK]) for at in range(0, len(z), CHUNK)])
        logvar = posterior.logvar.reshape(len(z), -1).astype(np.float64)
        entropy = 0.5 * (logvar + math.log(2 * math.pi) + 1).sum(axis=1)
        figures["elbo_prior"] = mean_of(-distortions + entropy + densities, seed)
        figures["prior_gap"] = mean_of(densities - log_standard_normal(flat), seed)
    return figures


def iwae(engine: Engine, images: ImageSource, posterior: Posterior, k: int, seed: int) -> dict[str, Metric]:
    """The importance-weighted bound on log p(x) in nats with k samples of each image.

    `iwae` is under N(0, I); `iwae_prior` is added when another prior is served. `posterior` is that of the
    images, uint8 [n, h, w, c]. The noise depends on image and sample alone, so a larger k keeps the first
    samples. Raises ValueError for k out of range.
    """
    if not 1 <= k <= MOST_SAMPLES:
        raise ValueError(f"k must be from 1 to {MOST_SAMPLES}, got {k}")
    served = _log_served(engine)
    bound, under_prior = (ImportanceBound(posterior, k, seed, stride=MOST_SAMPLES) for _ in range(2))
    for image, z in bound.pieces(CHUNK):
        first, last = int(image[0]), int(image[-1])
        shown = images[first : last + 1][image - first]
        log_p = log_likelihood(engine.manifest, shown, engine.pixels(z))
        bound.add(image, z, log_p)
        if served is not None:
            under_prior.add(image, z, log_p, served(z))
    figures = {"iwae": mean_of(bound.value, seed, k)}
    if served is not None:
        figures["iwae_prior"] = mean_of(under_prior.value, seed, k)
    return figures


def reconstruction(engine: Engine, images: ImageSource, mean: Floats) -> dict[str, Metric]:
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
    """log p(z) under the served prior; None if that is N(0, I) or has no density."""
    prior = engine.prior
    if prior is None or not prior.has_density or prior.kinds == ("normal",):
        return None
    return prior.log_density
