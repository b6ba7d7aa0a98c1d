"""Compares the default training with the losses of other packages and simple baselines, on digits.

    python -m benchmarks.quality            # five splits of scikit-learn's digits, about five minutes
    python -m benchmarks.quality --pythae /somewhere/bin/python     # an environment with torch and pythae

On each split, every loss trains the same network with the same batch, number of steps and seed:

- ours: the defaults of `vae-train fit` (Gaussian with the optimal σ, KL warm-up, averaged weights, cosine).
- pythae's loss: ½ Σ(x − x̂)² + KL, its default: a Gaussian with σ = 1. Adam, 1e-3.
- PyTorch-VAE's loss: mean (x − x̂)² + 0.00025 KL: a Gaussian whose σ² is 0.008 on 64 pixels. Adam, 1e-3.
- pythae itself, with --pythae: its VAE, trainer and mixture sampler (10 components, for `FD GMM`), once with
  its defaults (batches of 64, 1e-4) and once with our batch and 1e-3; as many epochs as ours.

NLL is the importance-weighted bound (k = 200) under N(0, I) of the 17 grey levels, with σ measured on
validation for every model. Its baseline is a 10-component Gaussian mixture on dequantized pixels, with
covariances chosen on validation. FD is the Fréchet distance of samples in the features of a classifier of the
training labels: `N` for samples of N(0, I), `GMM` for samples of a mixture fitted to the training latents.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import TrainConfig, resolve
from training.data import images as data
from training.data.load import load
from training.evaluation import classifier, metrics, samples
from training.fit import checkpoint, trainer
from training.fit.progress import Silent
from training.model import networks, objective
from training.model.networks import VAE, as_pixels
from training.publishing import fit_priors as priors
from vaeserve.bundle.batched import CHUNK
from vaeserve.bundle.likelihood import Gaussian
from vaeserve.bundle.noise import noise
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import Prior
from vaeserve.bundle.scores import ImportanceBound

K = 200
COMPONENTS = 10
SEED = 1000  # of z ~ q(z|x)
DRAWS = 16  # of z for each image, to fit the mixture
Floats = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor, networks.Posterior], Tensor]


def pythae(logits: Tensor, images: Tensor, posterior: networks.Posterior) -> Tensor:
    """`VAE.loss_function` of pythae 0.1.2 with `reconstruction_loss="mse"`."""
    squares = (images - torch.sigmoid(logits)).square().flatten(1).sum(1)
    return (0.5 * squares + objective.rate(posterior).sum(1)).mean()


def pytorch_vae(logits: Tensor, images: Tensor, posterior: networks.Posterior) -> Tensor:
    """`VanillaVAE.loss_function` of PyTorch-VAE with its configs' kld_weight."""
    squares = (images - torch.sigmoid(logits)).square().mean()
    return squares + 0.00025 * objective.rate(posterior).sum(1).mean()


def split(images: data.Images, seed: int) -> data.Images:
    """Split the images 80/10/10 at random."""
    order, n = np.random.default_rng(seed).permutation(len(images.pixels)), len(images.pixels) // 10
    parts = data.Split(np.sort(order[2 * n :]), np.sort(order[n : 2 * n]), np.sort(order[:n]))
    return dataclasses.replace(images, split=parts)


def ours(images: data.Images, config: TrainConfig) -> VAE:
    with tempfile.TemporaryDirectory() as folder:
        run = trainer.fit(config, images, Path(folder) / "run", progress=Silent())
        return checkpoint.load(run.checkpoint)[0]


def other(loss: Loss, images: data.Images, config: TrainConfig) -> VAE:
    """Train the same network with another loss, and with Adam as in the examples of the other packages.

    Returns the weights with the best validation loss, evaluated after each epoch.
    """
    network = networks.build(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rng, best, kept = np.random.default_rng(config.seed), math.inf, network
    held_out = _float(images.pixels[images.split.validation])
    for _ in range(config.epochs or 0):
        order = rng.permutation(images.split.train)
        for at in range(0, len(order) - config.images_per_step + 1, config.images_per_step):
            batch = _float(images.pixels[order[at : at + config.images_per_step]])
            eps = torch.from_numpy(rng.standard_normal((len(batch), config.latent or 0), np.float32))
            optimizer.zero_grad(set_to_none=True)
            loss(*_forward(network, batch, eps)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            eps = torch.from_numpy(noise(0, range(len(held_out)), (config.latent or 0,)))
            value = float(loss(*_forward(network, held_out, eps)))
        if value < best:
            best, kept = value, copy.deepcopy(network)
    return kept.eval()


def pythae_itself(
    python: str, images: data.Images, config: TrainConfig, settings: dict[str, float]
) -> tuple[VAE, data.ByteImages]:
    """The network that pythae trains with these settings, and a sample of its mixture for each test image."""
    parts = {part: _float(images.pixels[getattr(images.split, part)]) for part in ("train", "validation")}
    with tempfile.TemporaryDirectory() as folder:
        given, left = Path(folder) / "in.npz", Path(folder) / "out.pt"
        arrays = {part: pixels.numpy() for part, pixels in parts.items()}
        words = {"config": config.to_json(), "settings": json.dumps(settings)}
        np.savez(given, **arrays, **words, count=len(images.split.test))  # type: ignore[arg-type]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
        command = [python, "-m", "benchmarks.peers.pythae_vae", str(given), str(left)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"pythae ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        tensors = torch.load(left, weights_only=True)
    network = networks.build(config)
    network.encoder.load_state_dict(tensors["encoder"])
    network.decoder.load_state_dict(tensors["decoder"])
    return network.eval(), _bytes(tensors["samples"].permute(0, 2, 3, 1).numpy())


def _forward(network: VAE, images: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, networks.Posterior]:
    output = network(images, eps)
    return output.logits, images, output.posterior


@torch.no_grad()
def figures(
    network: VAE,
    images: data.Images,
    scorer: classifier.Classifier,
    seed: int,
    drawn: data.ByteImages | None = None,
) -> dict[str, float]:
    """The figures of the test images. `drawn`: samples of another mixture than ours, for `FD GMM`."""
    parts = {part: images.pixels[rows] for part, rows in dataclasses.asdict(images.split).items()}
    posteriors = {
        part: Posterior(*(array.numpy() for array in network.encoder(_float(pixels))))
        for part, pixels in parts.items()
    }
    codes = {part: posterior.mean for part, posterior in posteriors.items()}
    assert images.labels is not None
    labels = {part: images.labels[rows] for part, rows in dataclasses.asdict(images.split).items()}
    test = parts["test"]
    restored = _pixels(network, posteriors["validation"].sample(SEED))
    scale = math.sqrt(float(np.square(restored - parts["validation"] / 255).mean()))
    train, validation = (
        np.concatenate([posteriors[part].sample(SEED + draw) for draw in range(DRAWS)]).astype(np.float64)
        for part in ("train", "validation")
    )
    mixture, _ = priors.fit_mixture(train, validation, 50, seed)
    d = network.shape.latent
    n = len(test)
    real = classifier.features(scorer, test)
    distance = {}
    for name, prior in (("N", Prior((d,))), ("GMM", Prior((d,), mixture))):
        made = _bytes(_pixels(network, prior.sample(seed=seed, rows=range(n))))
        if name == "GMM" and drawn is not None:
            made = drawn
        distance[f"FD {name}"] = samples.frechet(real, classifier.features(scorer, made))
    restored = _pixels(network, codes["test"])
    return {
        "NLL": nll(network, test, posteriors["test"], scale, images.levels),
        "MSE": float(np.square(restored - test / 255).mean()),
        "probe": metrics.linear_probe(codes, labels),
        "5-NN": metrics.nearest_neighbours(codes, labels),
        **distance,
    }


def nll(network: VAE, test: data.ByteImages, posterior: Posterior, scale: float, levels: int) -> float:
    """−log p(x) in nats per image: the importance-weighted bound with K samples under N(0, I)."""
    likelihood = Gaussian(scale=scale)
    bound = ImportanceBound(posterior, K, SEED)
    for image, z in bound.pieces(CHUNK):
        bound.add(image, z, likelihood.log_prob(test[image], _pixels(network, z), levels))
    return float(-bound.value.mean())


def mixture_nll(images: data.Images, seed: int) -> float:
    """−log p(x) of a Gaussian mixture on pixels; each level is spread evenly over its bin of width 1."""
    from sklearn.mixture import GaussianMixture

    rng, top = np.random.default_rng(seed), images.levels - 1

    def spread(rows: data.Indices, times: int) -> NDArray[np.float64]:
        flat = np.rint(images.pixels[rows].reshape(len(rows), -1) / 255 * top)
        return np.concatenate([flat + rng.random(flat.shape) for _ in range(times)])

    train, validation = spread(images.split.train, 4), spread(images.split.validation, 16)
    fitted = [
        GaussianMixture(COMPONENTS, covariance_type=kind, reg_covar=floor, random_state=seed).fit(train)
        for kind, floor in (("diag", 1e-2), ("full", 1e-2), ("full", 0.3), ("tied", 1e-2))
    ]
    best = max(fitted, key=lambda mixture: float(mixture.score(validation)))
    return -float(best.score(spread(images.split.test, 16)))


def pca_figures(images: data.Images, components: int) -> dict[str, float]:
    from sklearn.decomposition import PCA

    assert images.labels is not None
    rows = dataclasses.asdict(images.split)
    flat = {part: images.pixels[chosen].reshape(len(chosen), -1) / 255 for part, chosen in rows.items()}
    labels = {part: images.labels[chosen] for part, chosen in rows.items()}
    pca = PCA(components).fit(flat["train"])
    codes = {part: pca.transform(array) for part, array in flat.items()}
    error = np.square(pca.inverse_transform(codes["test"]) - flat["test"]).mean()
    return {
        "MSE": float(error),
        "probe": metrics.linear_probe(codes, labels),
        "5-NN": metrics.nearest_neighbours(codes, labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the default training with other losses, on digits.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--pythae", metavar="PYTHON", help="interpreter of an environment with pythae")
    parser.add_argument("--epochs", type=int, help="default: that of `vae-train fit`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of our training"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.splits):
        images = split(load("digits"), seed)
        config = TrainConfig(seed=seed, epochs=arguments.epochs, precision="float32")
        for field, _, value in (each.partition("=") for each in arguments.set):
            kind = type(getattr(config, field))
            config = config.replace(**{field: value if kind is str else float(value)})
        config = resolve(
            config, name="digits", train=len(images.split.train), image=images.shape, binary=False
        )
        scorer = classifier.train(images, seed)
        rows: dict[str, dict[str, float]] = {
            f"10-component GMM, PCA-{config.latent}": {"NLL": mixture_nll(images, seed)}
            | pca_figures(images, config.latent or 0)
        }
        rows["ours"] = figures(ours(images, config), images, scorer, seed)
        for name, loss in (("pythae's loss", pythae), ("PyTorch-VAE's loss", pytorch_vae)):
            rows[name] = figures(other(loss, images, config), images, scorer, seed)
        if arguments.pythae:
            faster = {"per_device_train_batch_size": config.images_per_step, "learning_rate": 1e-3}
            for name, settings in (("pythae, defaults", {}), ("pythae, 1e-3", faster)):
                network, drawn = pythae_itself(arguments.pythae, images, config, settings)
                rows[name] = figures(network, images, scorer, seed, drawn)
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
            print(
                f"split {seed}  {name:24s}", {key: round(value, 4) for key, value in row.items()}, flush=True
            )
    _print(found)


def _print(found: dict[str, list[dict[str, float]]]) -> None:
    """Print means over the splits with standard errors, and the paired gain of ours in NLL."""
    columns = list(found["ours"][0])
    print(f"\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, rows in found.items():
        cells = [_mean([row[column] for row in rows]) if column in rows[0] else "–" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")
    for name, rows in found.items():
        if name != "ours":
            gains = [theirs["NLL"] - row["NLL"] for theirs, row in zip(rows, found["ours"], strict=True)]
            print(f"NLL of {name} minus ours, paired: {_mean(gains)} nats")


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4g} ± {error:.2g}"


@torch.no_grad()
def _pixels(network: VAE, z: Floats) -> NDArray[np.float32]:
    """The decoder's means, float32 [n, h, w, c]."""
    decoded: NDArray[np.float32] = (
        torch.sigmoid(network.decoder(torch.from_numpy(z))).permute(0, 2, 3, 1).numpy()
    )
    return decoded


def _bytes(pixels: NDArray[np.float32]) -> data.ByteImages:
    return np.rint(pixels * 255).astype(np.uint8)


def _float(images: data.ByteImages) -> Tensor:
    return as_pixels(torch.from_numpy(images))


if __name__ == "__main__":
    main()
