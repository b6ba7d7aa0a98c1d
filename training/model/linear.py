"""A linear path beside the convolutions, from images to latents and from latents to images.

Its optimum is probabilistic PCA, which is where a run starts (training/fit/linear_start.py). The convolutions
then learn what is not linear. Networks of images that differ little have it: without, they return the mean
image for a long time.
Both directions work on block means of at most 32×32, so their size does not grow with the images.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32  # pixels


def block(height: int, width: int) -> tuple[int, int]:
    """Height and width of the blocks whose means are at most 32×32 pixels."""
    return math.ceil(height / SIDE), math.ceil(width / SIDE)


class Analysis(nn.Module):
    """Images float32 [n, c, h, w] in [0, 1] → what they add to the posterior mean, [n, d]."""

    def __init__(self, height: int, width: int, channels: int, latent: int) -> None:
        super().__init__()
        self.block = block(height, width)
        size = channels * (height // self.block[0]) * (width // self.block[1])
        self.weights = nn.Linear(size, latent)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(self, images: Tensor) -> Tensor:
        small = images if self.block == (1, 1) else functional.avg_pool2d(images, self.block)
        latents: Tensor = self.weights(small.flatten(1))
        return latents


class Synthesis(nn.Module):
    """Latents float32 [n, d] → what they add to the logits, [n, c, h, w]: also the mean image, `centre`."""

    def __init__(self, height: int, width: int, channels: int, latent: int) -> None:
        super().__init__()
        rows, columns = block(height, width)
        self.size = height, width
        self.small = channels, height // rows, width // columns
        self.weights = nn.Linear(latent, math.prod(self.small), bias=False)
        self.centre = nn.Parameter(torch.zeros(channels, height, width))
        nn.init.zeros_(self.weights.weight)

    def forward(self, z: Tensor) -> Tensor:
        small = self.weights(z).reshape(-1, *self.small)
        if self.small[1:] != self.size:
            small = functional.interpolate(small, self.size, mode="bilinear", align_corners=False)
        logits: Tensor = small + self.centre
        return logits
