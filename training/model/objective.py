"""The training objective: distortion + β·rate in nats per image, or an importance-weighted bound.

Distortion is a sum over pixels and rate a sum over latents; the loss is the mean over images. A mean over
pixels would be the ELBO of another model, whose decoder variance depends on the image size. That is the
field's most common mistake.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from training.model.flow import log_standard_normal
from training.model.likelihoods import Likelihood
from training.model.networks import Output, Posterior

# log σ ≥ −6, σ ≥ 0.6 grey levels: on flat images the optimum is σ = 0, where the density has no bound.
SMALLEST_VARIANCE = math.exp(-12)


class Terms(NamedTuple):
    """The two parts of the negative ELBO, in nats: distortion [n] and rate [n, d].

    The rate is [n, 1] under a trained prior, whose density does not split into dimensions.
    """

    distortion: Tensor
    rate: Tensor


def rate(posterior: Posterior) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) per image and latent, [n, d], in closed form (arXiv 1312.6114, appendix B)."""
    mean, logvar = posterior
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def trained_rate(posterior: Posterior, log_prior: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p) estimated from log p(z) [n·k] of k samples of each image; [n, 1].

    The entropy of q has a closed form; the cross-entropy is the mean over the samples.
    """
    entropy = 0.5 * (posterior.logvar + math.log(2 * math.pi) + 1).sum(1)
    return (-entropy - log_prior.reshape(len(entropy), -1).mean(1))[:, None]


def optimal_variance(squares: Tensor, count: Tensor | int) -> Tensor:
    """The σ² that maximises the Gaussian likelihood of `count` pixels whose squared errors sum to `squares`.

    From a sum and a count, so that several processes can add theirs first. No gradient goes through it: at
    the optimum there is none. (The paper's soft clip of log σ at −6 exists for that gradient, and makes σ 5 %
    too large at σ = 0.05; a plain floor does not.)
    """
    return (squares.detach() / count).clamp(min=SMALLEST_VARIANCE)


def binarise(pixels: Tensor, uniform: Tensor) -> Tensor:
    """Binarise dynamically: x ~ Bernoulli(pixel), from uniform numbers in [0, 1) of the same shape.

    0 and 1 stay as they are.
    """
    return (uniform < pixels).to(pixels.dtype)


def batch_variance(squares: Tensor, count: int, total: Callable[[Tensor], Tensor] | None) -> Tensor:
    """σ² at the optimum of a batch, whose parts `total` adds up where several processes hold one each."""
    sums = torch.stack([squares.detach().sum(), squares.new_tensor(count)])
    return optimal_variance(*(total(sums) if total else sums))


def distortions(
    likelihood: Likelihood,
    output: Output,
    pixels: Tensor,
    *,
    levels: int | None,
    variance: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """−log p(x|z) of pixels [n, c, h, w] for each of k samples z, [n, k]; and the squared errors, a scalar:
    summed over images, averaged over the samples of each.

    `variance` is the mean squared error that sets a Gaussian's σ; None takes that of this batch, as in
    training. Where several processes hold a part of the batch each, `total` adds up their tensors. `levels`:
    how many values a pixel has.
    """
    n, k = len(pixels), len(output.z) // len(pixels)
    pixels = pixels if k == 1 else pixels.repeat_interleave(k, 0)
    squares = (pixels - likelihood.mean(output.logits)).square().flatten(1).sum(1)  # [n·k]

    def measured() -> Tensor:
        return batch_variance(squares, pixels.numel(), total) if variance is None else variance

    scale = likelihood.scale(output.scale, measured)
    log_probs = likelihood.log_prob(output.logits, pixels, scale, levels)
    return -log_probs.reshape(n, k), squares.sum() / k


def terms(distortions: Tensor, output: Output) -> Terms:
    """Both terms of the ELBO, from distortions [n, k] and under the prior of the output."""
    posterior, log_prior = output.posterior, output.log_prior
    rates = rate(posterior) if log_prior is None else trained_rate(posterior, log_prior)
    return Terms(distortions.mean(1), rates)


def loss(of: Terms, beta: float | Tensor, free_bits: float = 0.0) -> Tensor:
    """Mean over images of distortion + β·rate summed over latents; β = 1 gives the negative ELBO.

    With free bits (Kingma et al., arXiv 1606.04934) a dimension whose mean rate over the batch is below
    `free_bits` nats costs exactly that and gets no gradient, so that training does not switch it off early.
    """
    rates = of.rate.mean(0).clamp(min=free_bits)
    return of.distortion.mean() + beta * rates.sum()


def bound(distortions: Tensor, output: Output, beta: float = 1.0) -> Tensor:
    """The importance-weighted bound log 1/k Σ p(x|z) p(z) / q(z|x), from distortions [n, k]: [n] in nats.

    A lower bound on log p(x) that rises with k, the number of samples (IWAE, Burda et al., arXiv 1509.00519).
    The gradient is DReG's (Tucker et al., arXiv 1810.04152): the parameters of q are constants in log q(z|x),
    and the gradient through each sample is weighted by the sample's share once more. Without it the encoder's
    gradient drowns in noise as k grows. `beta` < 1 weights log p(z) − log q(z|x) during the KL warm-up; the
    result is then not a bound.
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
