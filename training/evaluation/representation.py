"""Compares the embedding with PCA, raw pixels and an untrained encoder, by linear probe and neighbours.

All four are fitted on the same training images (at most `MOST_FITTED`, fewer if images are large) and scored
on the same test images. The features of the model come from the exported graph.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from training.config import ConfigError, TrainConfig
from training.data.binarised import model_inputs
from training.data.images import ByteImages, Images, Indices, Say, Subset
from training.evaluation.metrics import linear_probe, mean_of, nearest_neighbours, psnr, share_of, ssim
from vaeserve.bundle.batched import CHUNK, encode
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.manifest import Manifest, Metric

MOST_FITTED = 60_000  # training images
MOST_SCORED = 10_000  # test images, and validation images
# Pixel values of training images in memory at once: 256 MB as float32, and PCA copies them.
MOST_VALUES = 1 << 26
MOST_CLASSES = 100  # with more, a probe takes longer than the training

Floats = NDArray[np.float32]


def compare_with_baselines(engine: Engine, data: Images, seed: int, say: Say) -> dict[str, Metric]:
    """Measure the posterior mean as an embedding, with PCA, raw pixels and the untrained encoder.

    - `linear_probe`, `knn5`, and the same with `_pca`, `_pixels` and `_random`: accuracies, if there are
      labels.
    - `mse_pca`, `psnr_pca`, `ssim_pca`: reconstructions from as many components as there are latents.
    - `fitted`: the number of training images that all of them were fitted on.
    """
    from sklearn.decomposition import PCA

    rows = _rows(data, seed)
    pixels = {part: _flat(data.pixels, chosen) for part, chosen in rows.items()}
    components = min(engine.manifest.latent.size, *pixels["train"].shape)
    pca = PCA(components, random_state=seed).fit(pixels["train"])
    codes = {part: pca.transform(array) for part, array in pixels.items()}
    shape = (-1, *data.shape)
    errors, similarities = [], []
    for at in range(0, len(rows["test"]), CHUNK):
        original = pixels["test"][at : at + CHUNK]
        restored = pca.inverse_transform(codes["test"][at : at + CHUNK])
        errors.append(np.square(restored - original).mean(axis=1, dtype=np.float64))
        similarities.append(ssim(original.reshape(shape), restored.reshape(shape)))
    mse = np.concatenate(errors)
    fitted = len(rows["train"])
    metrics = {
        "fitted": Metric(value=fitted, n=fitted, seed=seed),
        "mse_pca": mean_of(mse),
        "psnr_pca": mean_of(psnr(mse)),
        "ssim_pca": mean_of(np.concatenate(similarities)),
    }
    labels = data.labels
    if labels is None or not 2 <= len(np.unique(labels[rows["train"]])) <= MOST_CLASSES:
        return metrics
    features = {"": _embedded(engine, data, rows, seed), "_pca": codes, "_pixels": pixels}
    if (untrained := _untrained(engine.manifest)) is not None:
        features["_random"] = {part: untrained(Subset(data.pixels, chosen)) for part, chosen in rows.items()}
    numbers = {part: labels[chosen] for part, chosen in rows.items()}
    n = len(rows["test"])
    for name, arrays in features.items():
        say(f"probe and neighbours on {name.removeprefix('_') or 'the embedding'} …")
        metrics[f"linear_probe{name}"] = share_of(linear_probe(arrays, numbers), n)
        metrics[f"knn5{name}"] = share_of(nearest_neighbours(arrays, numbers), n)
    return metrics


def _rows(data: Images, seed: int) -> dict[str, Indices]:
    """The rows of each part to use: all, or a random choice of too many."""
    fits = max(1, MOST_VALUES // int(np.prod(data.shape)))
    scored = min(MOST_SCORED, max(1, fits // 4))
    most = {"train": min(MOST_FITTED, fits), "validation": scored, "test": scored}
    chosen = {}
    for part, rows in dataclasses.asdict(data.split).items():
        order = np.random.default_rng(seed).permutation(len(rows))[: most[part]]
        chosen[part] = rows[np.sort(order)]
    return chosen


def _flat(pixels: ByteImages, rows: Indices) -> Floats:
    """The images of these rows as vectors, float32 [m, h·w·c] in [0, 1]."""
    flat = np.empty((len(rows), int(np.prod(pixels.shape[1:]))), np.float32)
    for at in range(0, len(rows), CHUNK):
        flat[at : at + CHUNK] = pixels[rows[at : at + CHUNK]].reshape(-1, flat.shape[1])
    flat /= 255
    return flat


def _embedded(engine: Engine, data: Images, rows: dict[str, Indices], seed: int) -> dict[str, Floats]:
    """The posterior means of each part, float32 [m, d]."""
    kind = engine.manifest.likelihood.kind if engine.manifest.likelihood else None
    return {
        part: encode(engine, model_inputs(kind, data, chosen, seed))[0].reshape(len(chosen), -1)
        for part, chosen in rows.items()
    }


class _Untrained:
    """The posterior means of the network before its first training step, computed by torch."""

    def __init__(self, config: TrainConfig) -> None:
        from training.model.graphs import EncoderGraph
        from training.model.networks import build

        self.graph = EncoderGraph(build(config).eval().encoder)

    def __call__(self, images: Subset) -> Floats:
        import torch

        with torch.no_grad():
            parts = [
                self.graph(torch.from_numpy(images[at : at + CHUNK]))[0].numpy()
                for at in range(0, len(images), CHUNK)
            ]
        return np.concatenate(parts)


def _untrained(manifest: Manifest) -> _Untrained | None:
    """The untrained encoder; None if the manifest does not record how the network was built."""
    settings = dict(manifest.training.config) if manifest.training else {}
    settings.pop("step", None)
    try:
        return _Untrained(TrainConfig.from_dict(settings))
    except (ConfigError, ValueError):
        return None
