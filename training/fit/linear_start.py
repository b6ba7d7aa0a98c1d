"""Starts a network at probabilistic PCA of the training images (Tipping & Bishop, 1999).

That is the optimum of a linear VAE (Lucas et al., arXiv 1911.02469). The convolutions add nothing to it yet.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.images import Images
from training.data.spectrum import principal_components
from training.model import linear
from training.model.networks import VAE, Decoder, Encoder, as_pixels

IMAGES = 3000  # of a random choice, which components are computed of
DARKEST = 0.03  # the mean image has an infinite logit where all images are black or white


@torch.no_grad()
def start(network: VAE, data: Images, seed: int) -> None:
    """Set the weights of a new network; one without a linear path stays as it is."""
    encoder, decoder = network.encoder, network.decoder
    if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder):
        return  # of somebody else
    analysis, synthesis = encoder.linear, decoder.linear
    if analysis is None or synthesis is None:
        return
    rows = np.sort(np.random.default_rng(seed).permutation(data.split.train)[:IMAGES])
    centre, means = torch.zeros(data.shape[2], *data.shape[:2]), []
    for at in range(0, len(rows), 256):
        images = as_pixels(torch.from_numpy(data.pixels[rows[at : at + 256]]))
        centre += images.sum(0) / len(rows)
        means.append(nn.functional.avg_pool2d(images, linear.block(*data.shape[:2])))
    small = torch.cat(means)
    middle, components, variances = principal_components(small.flatten(1).numpy(), network.shape.latent)
    noise = _noise(small, middle, variances)
    used = np.maximum(variances - noise, 1e-12)
    to_latents = components * (np.sqrt(used) / variances)[:, None]
    grey = np.clip(middle, DARKEST, 1 - DARKEST)
    to_logits = components * np.sqrt(used)[:, None] / (grey * (1 - grey))

    d = len(variances)  # fewer than latents in a tiny set
    analysis.weights.weight[:d] = _float(to_latents)
    analysis.weights.bias[:d] = _float(-to_latents @ middle)
    synthesis.weights.weight[:, :d] = _float(to_logits.T)
    synthesis.centre.copy_(torch.logit(centre, DARKEST))
    for convolutions in (encoder.head, decoder.ups[-1]):
        for parameter in convolutions.parameters():
            parameter.zero_()
    encoder.head.bias[network.shape.latent :][:d] = _float(np.log(noise / variances))


def _noise(small: Tensor, middle: NDArray[np.float64], variances: NDArray[np.float64]) -> float:
    """The mean variance of the block means outside the components."""
    total = float(np.square(small.flatten(1).numpy() - middle).sum(axis=1, dtype=np.float64).mean())
    outside = small[0].numel() - len(variances)
    return max((total - float(variances.sum())) / max(outside, 1), 1e-6)


def _float(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
