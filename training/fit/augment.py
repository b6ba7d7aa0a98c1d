"""Augments training images: small changes after which an image still looks like one of the set.

What is small depends on the set: hands may move by an eighth of the frame, aligned parts by nothing, and
letters have no mirror images. So `fitting` measures it. A changed image that is as close to the other images
as the original is could be one of them.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.config import NO_AUGMENTATION, Augmentation
from training.data.images import ByteImages, Indices
from training.model.networks import as_pixels

MOST = Augmentation(shift=0.12, rotation=10, scale=0.1, brightness=0.1, contrast=0.2)
LIGHT = Augmentation(shift=0.03, rotation=2.5, scale=0.03, brightness=0.05, contrast=0.1)
HALVINGS = 3
# Mean distance to the nearest other image, after the change over before it. The full recipe of MOST raised it
# by 13 % on photographs of hands, which it helped; the smallest shift raised it by 50 % on centred emoji.
FARTHER = 1.2
FARTHER_MIRRORED = 1.05  # a mirrored 3 is not a rare 3, so there is no smaller amount of it
FEW_PASSES = 30  # so often an image can be seen before the network knows it better than others like it
COMPARED, AMONG = 400, 4000  # images that are changed, and images that they are compared with
SIDE = 32  # pixels at which they are compared: noise of single pixels would hide a shift


def augment(images: Tensor, uniform: Tensor, by: Augmentation) -> Tensor:
    """Change each image float32 [n, c, h, w] in [0, 1] on its own, by `uniform` random numbers [n, 7].

    What a shift or a rotation brings in from outside is the image mirrored at its border.
    """
    mirrored = (uniform[:, 0] < 0.5) & by.mirror
    right, down, turn, size, light, contrast = (2 * uniform[:, 1:] - 1).unbind(1)
    if by.shift or by.rotation or by.scale:
        angle, grown = turn * by.rotation * torch.pi / 180, (1 + by.scale) ** -size
        cosine, sine = angle.cos() * grown, angle.sin() * grown
        sign = torch.where(mirrored, -1.0, 1.0)
        top = torch.stack([sign * cosine, -sine, 2 * by.shift * right], 1)
        bottom = torch.stack([sign * sine, cosine, 2 * by.shift * down], 1)
        grid = functional.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
        # Bilinear interpolation would blur what the network learns to draw.
        images = functional.grid_sample(
            images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
    elif by.mirror:
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    mean = images.mean((1, 2, 3), keepdim=True)
    gain, offset = (1 + by.contrast * contrast, by.brightness * light)
    images = (images - mean) * gain[:, None, None, None] + mean + offset[:, None, None, None]
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def fitting(pixels: ByteImages, rows: Indices, seed: int) -> Augmentation:
    """The largest amounts of MOST, each alone, that leave images of the set `pixels` uint8 [n, h, w, c] where
    the set is. Only `rows` are read, and of those a random choice."""
    chosen = np.random.default_rng(seed).permutation(rows)[:AMONG]

    def taken(few: Indices) -> Tensor:
        return as_pixels(torch.from_numpy(pixels[few]))

    among = torch.cat([_small(taken(chosen[at : at + 256])) for at in range(0, len(chosen), 256)])
    originals = taken(chosen[:COMPARED])
    uniform = torch.rand(len(originals), 7, generator=torch.Generator().manual_seed(seed))
    before = _nearest(_small(originals), among)

    def farther(by: Augmentation, uniform: Tensor = uniform) -> float:
        return _nearest(_small(augment(originals, uniform, by)), among) / max(before, 1e-9)

    found = {}
    for field, most in MOST.amounts.items():
        amounts = (most / 2**halving for halving in range(HALVINGS + 1))
        fits = (amount for amount in amounts if farther(Augmentation(**{field: amount})) <= FARTHER)
        found[field] = next(fits, 0.0)
    mirror = farther(Augmentation(mirror=True), torch.zeros_like(uniform)) <= FARTHER_MIRRORED
    return Augmentation(mirror=mirror, **found)


def choose(asked: str, passes: float, measure: Callable[[], Augmentation]) -> Augmentation:
    """The augmentation for `--augment`. `passes`: how often the run sees each image."""
    if asked == "light":
        return LIGHT
    return measure() if asked == "auto" and passes > FEW_PASSES else NO_AUGMENTATION


def _small(images: Tensor) -> Tensor:
    """The images as vectors [n, c·h·w] of at most 32×32 pixels."""
    height, width = images.shape[2:]
    sides = min(height, SIDE), min(width, SIDE)
    return functional.adaptive_avg_pool2d(images, sides).flatten(1)


def _nearest(images: Tensor, among: Tensor) -> float:
    """The mean distance of each image to the nearest of `among`, without the image itself at its place."""
    apart = torch.cdist(images, among)
    apart.fill_diagonal_(torch.inf)
    return float(apart.min(1).values.mean())
