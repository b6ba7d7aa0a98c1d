"""The likelihoods p(x|z) in training: what each costs, where its scale comes from, and what is published.

The decoder gives logits, and their sigmoid is the mean of every likelihood. The service computes the same
from the exported pixels: vaeserve/bundle/likelihood.py has a record of the same `kind` for each class here.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from training.config import Likelihood as Kind
from vaeserve.bundle import likelihood as records


class Likelihood:
    """The part that all likelihoods share."""

    kind: ClassVar[Kind]
    symbol: ClassVar[str] = "σ"  # of the scale
    first_scale: ClassVar[float | None] = None  # where a scale that is learned starts, on [0, 1]

    @property
    def binary(self) -> bool:
        """Whether pixels are 0 or 1, so that grey images are binarised first."""
        return records.LIKELIHOODS[self.kind].binary

    def mean(self, logits: Tensor) -> Tensor:
        """E[x|z] in [0, 1], of the decoder's logits."""
        return torch.sigmoid(logits)

    def scale(self, learned: Tensor | None, variance: Callable[[], Tensor]) -> Tensor | None:
        """The scale on [0, 1], a scalar. `learned` is the network's parameter; `variance` computes the mean
        squared error, which is the optimal variance."""
        return learned

    def log_prob(self, logits: Tensor, pixels: Tensor, scale: Tensor | None, levels: int | None) -> Tensor:
        """log p(x|z) in nats, [n], summed over all other axes; logits and pixels in [0, 1] are [n, …].

        `levels`: how many values a pixel has.
        """
        raise NotImplementedError

    def record(self, learned: float | None, error: Callable[[], float]) -> records.Likelihood:
        """The record of the manifest. `error` computes the mean squared error of held-out images."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Pixels that are black or white, with the probability of white from the decoder."""

    kind = "bernoulli"

    def log_prob(self, logits: Tensor, pixels: Tensor, scale: Tensor | None, levels: int | None) -> Tensor:
        return (
            -functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").flatten(1).sum(1)
        )

    def record(self, learned: float | None, error: Callable[[], float]) -> records.Likelihood:
        return records.Bernoulli()


class Gaussian(Likelihood):
    """A density with one σ for all pixels, at its optimum (σ-VAE, Rybkin et al., arXiv 2006.13202).

    σ² is the mean squared error itself, so there is no β to tune.
    """

    kind = "gaussian"

    def scale(self, learned: Tensor | None, variance: Callable[[], Tensor]) -> Tensor:
        return variance().sqrt()

    def log_prob(self, logits: Tensor, pixels: Tensor, scale: Tensor | None, levels: int | None) -> Tensor:
        assert scale is not None
        squares = (pixels - self.mean(logits)).square().flatten(1)
        return -0.5 * (squares.sum(1) / scale.square() + squares.shape[1] * torch.log(2 * math.pi * scale**2))

    def record(self, learned: float | None, error: Callable[[], float]) -> records.Likelihood:
        return records.Gaussian(scale=max(error(), 1e-12) ** 0.5)


class Logistic(Likelihood):
    """The mass that a logistic has in each pixel's bin, the end bins open (PixelCNN++, arXiv 1701.05517).

    Its scale s has no optimum in closed form, because the open bins of black and white cost less and less as
    s falls. It is learned with the weights (IAF, arXiv 1606.04934), and published as it was trained.
    """

    kind = "logistic"
    symbol = "s"
    first_scale = 0.1  # about the error of the first reconstructions of grey images

    def log_prob(self, logits: Tensor, pixels: Tensor, scale: Tensor | None, levels: int | None) -> Tensor:
        assert scale is not None
        assert levels is not None
        return log_logistic_mass(self.mean(logits), pixels, scale, levels)

    def record(self, learned: float | None, error: Callable[[], float]) -> records.Likelihood:
        assert learned is not None
        return records.Logistic(scale=learned)


LIKELIHOODS: dict[str, Likelihood] = {each.kind: each for each in (Bernoulli(), Gaussian(), Logistic())}


def log_logistic_mass(mean: Tensor, pixels: Tensor, scale: Tensor, levels: int) -> Tensor:
    """log mass of each pixel's bin, summed over all axes but the first, [n].

    F(b) − F(a) = F(b) (1 − F(a)) (1 − exp(a − b)): these three logarithms are exact in float32 however far
    away the pixel is, where the difference itself is 0.
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
    return mass.flatten(1).sum(1)
