"""The variance of a set by principal component, which says how many latent dimensions are worth having."""

import numpy as np
from numpy.typing import NDArray

from training.data.images import ByteImages, Images, Indices, Subset

SIZES = (16, 32, 64, 96, 128, 192, 256)
LEFT = 0.1  # share of the variance of held-out images
# Training images. With 13 for each (128 latents for 1,631 photographs of hands) the ELBO was 500 nats lower
# than with 25, the probe worse and samples further from real images.
FEWEST_PER_DIMENSION = 24
FITTED, HELD_OUT = 2000, 500  # images
SIDE = 64  # pixels; finer detail has hardly any of the variance


def latent_size(data: Images, seed: int) -> tuple[int, float]:
    """Latent dimensions for a set, and the share of its variance that as many principal components leave.

    The smallest of SIZES that leaves at most LEFT on validation images, or the largest that has 24 training
    images for each dimension.
    """
    left = variance_left(data, seed)
    enough = [size for size in SIZES if size * FEWEST_PER_DIMENSION <= len(data.split.train)] or [SIZES[0]]
    chosen = next((size for size in enough if size > len(left) or left[size - 1] <= LEFT), enough[-1])
    return chosen, float(left[min(chosen, len(left)) - 1])


def variance_left(data: Images, seed: int) -> NDArray[np.float64]:
    """The share of the variance of validation images outside the first 1, 2, … principal components, which
    are those of a random choice of training images."""
    rng = np.random.default_rng(seed)
    train, held_out = (
        _flat(data.pixels, np.sort(rng.permutation(rows)[:most]))
        for rows, most in ((data.split.train, FITTED), (data.split.validation, HELD_OUT))
    )
    centre, components, _ = principal_components(train, max(SIZES))
    held_out = held_out - centre.astype(np.float32)
    explained = np.square(held_out @ components.astype(np.float32).T).sum(axis=0, dtype=np.float64)
    whole = max(float(np.square(held_out).sum(dtype=np.float64)), 1e-9)
    return np.clip(1 - np.cumsum(explained) / whole, 0, 1)


def principal_components(
    vectors: NDArray[np.floating], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre [p], components [d, p] and their variances [d], largest first, of vectors [m, p]; d ≤ `most`."""
    centre = vectors.mean(axis=0, dtype=np.float64)
    vectors = vectors - centre.astype(vectors.dtype)
    # The components are the eigenvectors of the smaller of the two products.
    few = len(vectors) < vectors.shape[1]
    values, found = np.linalg.eigh((vectors @ vectors.T if few else vectors.T @ vectors).astype(np.float64))
    order = np.argsort(values)[::-1][:most]
    order = order[values[order] > 1e-9 * max(values[-1], 1e-9)]
    components = found[:, order].T
    if few:
        components = components @ vectors / np.sqrt(values[order])[:, None]
    return centre, components, values[order] / len(vectors)


def _flat(pixels: ByteImages, rows: Indices) -> NDArray[np.floating]:
    """The images as vectors, float32 [m, h·w·c], every second pixel and so on where they are large."""
    step = -(-max(pixels.shape[1:3]) // SIDE)
    images = Subset(pixels, rows)
    parts = [images[at : at + 256][:, ::step, ::step] for at in range(0, len(rows), 256)]
    return np.concatenate(parts).reshape(len(rows), -1).astype(np.float32) / np.float32(255)
