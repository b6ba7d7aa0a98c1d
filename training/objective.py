"""The objective: distortion + rate in nats per image, for a Bernoulli or a calibrated Gaussian decoder.

Both are sums, over pixels and over latents, and the loss is their mean over images. A mean over pixels would
be the ELBO of another model, one whose decoder's variance nobody chose: the field's most common mistake.

The Gaussian has one σ for all pixels, at its optimum: σ² is the mean squared error itself (σ-VAE, Rybkin et
al., arXiv 2006.13202). With it there is no β to tune.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.config import Likelihood
from training.networks import Posterior

# log σ ≥ −6, σ ≥ 0.6 grey levels: on flat images the optimum is σ = 0, where the density has no bound.
SMALLEST_VARIANCE = math.exp(-12)


class Terms(NamedTuple):
    """The negative ELBO in its two parts, in nats: distortion [n], rate [n, d]."""

    distortion: Tensor
    rate: Tensor


def rate(posterior: Posterior) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) per image and latent, [n, d], in closed form (arXiv 1312.6114, appendix B)."""
    mean, logvar = posterior
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def bernoulli(logits: Tensor, pixels: Tensor) -> Tensor:
    """−log Bernoulli(pixels; sigmoid(logits)), summed over all but axis 0: [n, …], [n, …] in {0, 1} → [n]."""
    return functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").flatten(1).sum(1)


def gaussian(squares: Tensor, count: int, variance: Tensor) -> Tensor:
    """−log N(pixels; mean, variance·I) of images with `count` pixels: Σ(pixel − mean)² [n], [] → [n]."""
    return 0.5 * (squares / variance + count * torch.log(2 * math.pi * variance))


def optimal_variance(squares: Tensor, count: Tensor | int) -> Tensor:
    """The σ² that maximises the likelihood of `count` pixels whose squared errors sum to `squares`.

    From a sum and a count, so that several processes can add theirs first. No gradient goes through it: at
    the optimum there is none. (The paper's soft clip of log σ at −6 exists for that gradient, and makes σ 5 %
    too large at σ = 0.05; a plain floor does not.)
    """
    return (squares.detach() / count).clamp(min=SMALLEST_VARIANCE)


def binarise(pixels: Tensor, uniform: Tensor) -> Tensor:
    """Dynamic binarisation: x ~ Bernoulli(pixel), by uniform numbers in [0, 1) of the same shape; 0 and 1
    stay as they are."""
    return (uniform < pixels).to(pixels.dtype)


def terms(
    kind: Likelihood,
    logits: Tensor,
    pixels: Tensor,
    posterior: Posterior,
    variance: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Terms, Tensor]:
    """Both terms for decoder logits and pixels [n, c, h, w], and the sum of squared errors (a scalar).

    `variance` is the Gaussian's σ²; None takes the optimum of this batch, which is what training does. Where
    several processes hold a slice of the batch each, `total` adds theirs: σ² is that of the whole batch.
    """
    squares = (pixels - torch.sigmoid(logits)).square().flatten(1).sum(1)  # [n]
    if kind == "bernoulli":
        return Terms(bernoulli(logits, pixels), rate(posterior)), squares.sum()
    if variance is None:
        sums = torch.stack([squares.detach().sum(), squares.new_tensor(pixels.numel())])
        variance = optimal_variance(*(total(sums) if total else sums))
    return Terms(gaussian(squares, math.prod(pixels.shape[1:]), variance), rate(posterior)), squares.sum()


def loss(of: Terms, beta: float | Tensor, free_bits: float = 0.0) -> Tensor:
    """Mean over images of distortion + β·rate summed over latents; β = 1 gives the negative ELBO.

    With free bits (Kingma et al., arXiv 1606.04934) a dimension whose mean rate over the batch is below so
    many nats costs these and gets no gradient: it is not given up while it is still worth little.
    """
    rates = of.rate.mean(0).clamp(min=free_bits)
    return of.distortion.mean() + beta * rates.sum()
