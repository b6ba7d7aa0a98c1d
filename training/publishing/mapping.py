"""A map of the latent space for people to look at: writes map.npz."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.binarised import model_inputs
from training.data.images import Images, Subset
from vaeserve.bundle.batched import encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.images import fit_array
from vaeserve.bundle.latent_map import NO_LABEL, LatentMap

FILE = "map.npz"
POINTS = 2000
THUMBNAIL = 28  # the longer side at most
BYTES = 1_600_000  # of all thumbnails before compression, which makes a third of it of digits


def latent_map(engine: Engine, data: Images, seed: int) -> LatentMap:
    """Up to `POINTS` validation images on the plane of the two first principal components of their posterior
    means; the plane is fitted to all validation images."""
    held_out = data.split.validation
    likelihood = engine.manifest.likelihood
    mean, _ = encode(engine, model_inputs(likelihood.kind if likelihood else None, data, held_out, seed))
    centre, components, variance = _plane(mean.reshape(len(mean), -1).astype(np.float64))
    chosen = np.random.default_rng(seed).permutation(len(held_out))[:POINTS]
    rows, latents = held_out[chosen], mean[chosen].astype(np.float16)
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    labels = np.full(len(rows), NO_LABEL)
    if data.labels is not None and engine.manifest.labels == data.label_names is not None:
        labels = data.labels[rows]
    return LatentMap(
        mean=centre.astype(np.float32),
        components=components.astype(np.float32),
        variance=variance.astype(np.float32),
        points=((flat - centre) @ components.T).astype(np.float32),
        labels=labels.astype(np.int16),
        latents=latents.astype(np.float32),
        thumbnails=_thumbnails(Subset(data.pixels, rows), len(rows)),
    )


def write_map(engine: Engine, data: Images, seed: int, folder: Path) -> None:
    """map.npz, the latents in half precision."""
    made = latent_map(engine, data, seed)
    arrays = made._asdict() | {"latents": made.latents.astype(np.float16)}
    np.savez_compressed(folder / FILE, allow_pickle=False, **arrays)


def _plane(
    means: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre [d], principal components [2, d] and their shares of the variance [2] of means [n, d]."""
    from sklearn.decomposition import PCA

    pca = PCA(min(2, *means.shape), svd_solver="full").fit(means)
    missing = 2 - len(pca.components_)  # of a latent space with one dimension
    components = np.pad(pca.components_, ((0, missing), (0, 0)))
    return pca.mean_, components, np.pad(np.nan_to_num(pca.explained_variance_ratio_), (0, missing))


def _thumbnails(images: Subset, n: int) -> NDArray[np.uint8]:
    """All images at a size that keeps them within `BYTES`, never enlarged; uint8 [n, h, w, c]."""
    _, height, width, channels = images[:1].shape
    side = min(THUMBNAIL, math.isqrt(BYTES // (n * channels)), max(height, width))
    scale = side / max(height, width)
    h, w = (max(1, round(scale * length)) for length in (height, width))
    return np.stack(
        [
            fit_array(image, height=h, width=w, channels=channels, fit="stretch")
            for start in range(0, n, 256)
            for image in images[start : start + 256]
        ]
    )
