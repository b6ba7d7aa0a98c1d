"""The objective: distortion + rate in nats per image, for a Bernoulli, a calibrated Gaussian or a logistic.

Both are sums, over pixels and over latents, and the loss is their mean over images. A mean over pixels would
be the ELBO of another model, one whose decoder's variance nobody chose: the field's most common mistake.

The Gaussian has one σ for all pixels, at its optimum: σ² is the mean squared error itself (σ-VAE, Rybkin et
al., arXiv 2006.13202). With it there is no β to tune. The logistic is discretised, so its one scale has no
such optimum to be computed (the open bins of black and of white cost less and less as s falls, in the density
there are none): it is learned with the weights, and what is exported is what was trained with.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.config import Likelihood
from training.model.flow import log_standard_normal
from training.model.networks import Output, Posterior

# log σ ≥ −6, σ ≥ 0.6 grey levels: on flat images the optimum is σ = 0, where the density has no bound.
SMALLEST_VARIANCE = math.exp(-12)


class Terms(NamedTuple):
    """The negative ELBO in its two parts, in nats: distortion [n], rate [n, d]; [n, 1] under a trained
    prior, whose density is of all dimensions together."""

    distortion: Tensor
    rate: Tensor


def rate(posterior: Posterior) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) per image and latent, [n, d], in closed form (arXiv 1312.6114, appendix B)."""
    mean, logvar = posterior
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def trained_rate(posterior: Posterior, log_prior: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p) estimated from log p(z) [n·k] of k samples each: minus the entropy of q, which has a
    closed form, minus their mean; [n, 1]."""
    entropy = 0.5 * (posterior.logvar + math.log(2 * math.pi) + 1).sum(1)
    return (-entropy - log_prior.reshape(len(entropy), -1).mean(1))[:, None]


def bernoulli(logits: Tensor, pixels: Tensor) -> Tensor:
    """−log Bernoulli(pixels; sigmoid(logits)), summed over all but axis 0: [n, …], [n, …] in {0, 1} → [n]."""
    return functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").flatten(1).sum(1)


def gaussian(squares: Tensor, count: int, variance: Tensor) -> Tensor:
    """−log N(pixels; mean, variance·I) of images with `count` pixels: Σ(pixel − mean)² [n], [] → [n]."""
    return 0.5 * (squares / variance + count * torch.log(2 * math.pi * variance))


def logistic(mean: Tensor, pixels: Tensor, scale: Tensor, levels: int) -> Tensor:
    """−log of the mass that a logistic around `mean` has in each pixel's bin, the end bins open (PixelCNN++,
    arXiv 1701.05517; IAF, arXiv 1606.04934), summed over all but axis 0: [n, …], [n, …] in [0, 1], [] → [n].

    F(b) − F(a) = F(b) (1 − F(a)) (1 − exp(a − b)): three logarithms that are exact in float32 however far off
    the pixel is, where the difference itself is 0. It is what service.runtime.likelihood computes.
    """
    level = torch.round(pixels * (levels - 1))
    upper = ((level + 0.5) / (levels - 1) - mean) / scale
    lower = ((level - 0.5) / (levels - 1) - mean) / scale
    width = torch.log(-torch.expm1(-1 / ((levels - 1) * scale)))
    nothing = torch.zeros_like(mean)
    black, white = level == 0, level == levels - 1
    mass = torch.where(white, nothing, functional.logsigmoid(upper))
    mass = mass + torch.where(black, nothing, functional.logsigmoid(-lower))
    mass = mass + torch.where(black | white, nothing, width)
    return -mass.flatten(1).sum(1)


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


def distortions(
    kind: Likelihood,
    output: Output,
    pixels: Tensor,
    variance: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    levels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """−log p(x|z) of pixels [n, c, h, w] for each of k samples z, [n, k]; and the sum over images of squared
    errors, of which an image's is the mean over its samples (a scalar).

    `variance` is the Gaussian's σ²; None takes the optimum of this batch, which is what training does. Where
    several processes hold a slice of the batch each, `total` adds theirs: σ² is that of the whole batch.
    `levels`: how many values a pixel has, for the logistic.
    """
    n, k = len(pixels), len(output.z) // len(pixels)
    pixels = pixels if k == 1 else pixels.repeat_interleave(k, 0)
    mean = torch.sigmoid(output.logits)
    squares = (pixels - mean).square().flatten(1).sum(1)  # [n·k]
    if kind == "bernoulli":
        each = bernoulli(output.logits, pixels)
    elif kind == "logistic":
        assert output.scale is not None  # as `networks.build` makes it
        assert levels is not None  # resolved
        each = logistic(mean, pixels, output.scale, levels)
    else:
        if variance is None:
            sums = torch.stack([squares.detach().sum(), squares.new_tensor(pixels.numel())])
            variance = optimal_variance(*(total(sums) if total else sums))
        each = gaussian(squares, math.prod(pixels.shape[1:]), variance)
    return each.reshape(n, k), squares.sum() / k


def terms(distortions: Tensor, output: Output) -> Terms:
    """Both terms of the ELBO: distortions [n, k] are averaged, and the rate is that under the prior that the
    output has."""
    posterior, log_prior = output.posterior, output.log_prior
    return Terms(
        distortions.mean(1), rate(posterior) if log_prior is None else trained_rate(posterior, log_prior)
    )


def loss(of: Terms, beta: float | Tensor, free_bits: float = 0.0) -> Tensor:
    """Mean over images of distortion + β·rate summed over latents; β = 1 gives the negative ELBO.

    With free bits (Kingma et al., arXiv 1606.04934) a dimension whose mean rate over the batch is below so
    many nats costs these and gets no gradient: it is not given up while it is still worth little.
    """
    rates = of.rate.mean(0).clamp(min=free_bits)
    return of.distortion.mean() + beta * rates.sum()


def bound(distortions: Tensor, output: Output, beta: float = 1.0) -> Tensor:
    """log 1/k Σ p(x|z) p(z) / q(z|x) over k samples of each image, from distortions [n, k]: [n] in nats, a
    lower bound of log p(x) that rises with k (IWAE, Burda et al., arXiv 1509.00519).

    Its gradient is DReG's (Tucker et al., arXiv 1810.04152): q's own parameters are held where log q(z|x)
    names them, and what comes back through a sample is weighed by that sample's share once more. Without it
    the encoder's gradient drowns in noise as k grows. `beta` < 1 weighs log p(z) − log q(z|x) while training
    warms up, where this is no bound of anything.
    """
    z, (mean, logvar) = output.z, output.posterior
    n, k = distortions.shape
    of_q = z.reshape(n, k, -1) - mean.detach()[:, None]
    held = logvar.detach()[:, None]
    log_q = -0.5 * (of_q.square() * (-held).exp() + held + math.log(2 * math.pi)).sum(2)
    log_p = log_standard_normal(z) if output.log_prior is None else output.log_prior
    log_weights = beta * (log_p.reshape(n, k) - log_q) - distortions
    if z.requires_grad:
        shares = log_weights.detach().softmax(1).reshape(-1, 1)
        z.register_hook(lambda gradient: shares * gradient)  # type: ignore[no-untyped-call]
    return log_weights.logsumexp(1) - math.log(k)
