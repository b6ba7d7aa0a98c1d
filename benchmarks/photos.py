"""Compares `vae-train fit` with other VAEs on photographs, at equal latent dimensions and equal time.

    python -m venv /somewhere && /somewhere/bin/pip install torch==2.13.0 pythae -e '.[train]'
    python -m benchmarks.photos path/to/signs path/to/emoji --pythae /somewhere/bin/python

Each row has the same split, latent dimensions and minutes of training on the same threads of the CPU:

- ours: `vae-train fit`, its defaults. It chooses the latent dimensions.
- without-rate: the same with `--beta 0`, an autoencoder. Its last weights, because the ELBO selects others.
- PCA: as many principal components, fitted to the training images.
- PyTorch-VAE: our network and augmentation with its loss, mean (x - x̂)² + 0.00025 KL, and the optimizer of
  its configs, Adam with 5e-3 that falls by 5 % an epoch.
- pythae-VAE, pythae-conv: its VAE with its own networks (a hidden layer of 512 units; the convolutional
  network for CelebA, 64×64×3 only), `reconstruction_loss="mse"`, its trainer and mixture sampler, all at
  their defaults, except that the minutes end the training and not 100 epochs.

Figures are of the test images: reconstructions from the posterior mean, probes on it, the Fréchet distance of
as many samples (from a mixture fitted to the latents; in brackets from N(0, I)) in the features of a
classifier of the training labels, and bits per dimension from the ELBO with σ measured on validation. A row
that is in --out already is not trained again.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as vae-train sets it

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import TrainConfig
from training.data.images import ByteImages, Images, Indices, Subset
from training.data.load import load
from training.evaluation import classifier, metrics, samples
from training.evaluation.representation import MOST_VALUES
from training.fit import checkpoint, trainer
from training.fit.batches import Pixels, draw, order
from training.fit.distributed import Ranks
from training.fit.progress import stderr
from training.model import networks, objective
from training.publishing import fit_priors
from training.publishing.publish import publish_checkpoint
from vaeserve.bundle.atomic import write_atomically
from vaeserve.bundle.batched import CHUNK, encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.likelihood import Gaussian
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import Prior
from vaeserve.bundle.repository import open_engine

SEED = 0
ROWS = ("ours", "without-rate", "PCA", "PyTorch-VAE", "pythae-VAE", "pythae-conv")
COLUMNS = {
    "MSE": ".5f", "PSNR": ".2f", "SSIM": ".4f", "probe": ".3f", "5-NN": ".3f", "FD": ".1f", "bits/dim": ".3f",
    "minutes": ".1f",
}  # fmt: skip
Floats = NDArray[np.float32]


class Arrays(NamedTuple):
    """What a trained model makes of a set. Pixels are float32 [n, h, w, c] in [0, 1].

    `means`: of the posteriors by part, [n, d]; `restored`: the test images from their means; `rate` of the
    test images in nats [n]; `drawn`: validation and test images from one z ~ q(z|x) each; `made`: as many
    samples as test images, uint8, under "FD" from a mixture and under "FD N" from N(0, I). None where a model
    has none.
    """

    means: dict[str, Floats]
    restored: Floats
    rate: NDArray[np.float64] | None = None
    drawn: tuple[Floats, Floats] | None = None
    made: dict[str, ByteImages] | None = None


def figures(arrays: Arrays, images: Images, scorer: classifier.Classifier | None) -> dict[str, float]:
    """The columns of a row; without `scorer`, those that need no labels."""
    test = images.pixels[images.split.test]
    original = floats(images, images.split.test)
    mse = np.square(arrays.restored - original).mean(axis=(1, 2, 3), dtype=np.float64)
    ssim = [
        metrics.ssim(original[at : at + CHUNK], arrays.restored[at : at + CHUNK])
        for at in range(0, len(original), CHUNK)
    ]
    found = {"MSE": mse.mean(), "PSNR": metrics.psnr(mse).mean(), "SSIM": np.concatenate(ssim).mean()}
    if scorer is not None and images.labels is not None:
        labels = {part: images.labels[rows] for part, rows in dataclasses.asdict(images.split).items()}
        found["probe"] = metrics.linear_probe(arrays.means, labels)
        found["5-NN"] = metrics.nearest_neighbours(arrays.means, labels)
        real = classifier.features(scorer, test)
        for name, made in (arrays.made or {}).items():
            found[name] = samples.frechet(real, classifier.features(scorer, made))
    if arrays.drawn is not None and arrays.rate is not None:
        validation, drawn = arrays.drawn
        variance = np.square(validation - floats(images, images.split.validation)).mean(dtype=np.float64)
        likelihood = Gaussian(scale=math.sqrt(max(variance, objective.SMALLEST_VARIANCE)))
        nats = arrays.rate - likelihood.log_prob(test, drawn, images.levels)
        found["bits/dim"] = nats.mean() / (math.prod(images.shape) * math.log(2))
    return {name: float(value) for name, value in found.items()}


def floats(images: Images, rows: Indices) -> Floats:
    return images.pixels[rows].astype(np.float32) / np.float32(255)


def as_bytes(pixels: Floats) -> ByteImages:
    return np.rint(pixels * 255).astype(np.uint8)


# --- the models ---------------------------------------------------------------------------------------------


class Network:
    """A network of torch with those methods of an engine that make arrays."""

    def __init__(self, network: networks.VAE) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def encode(self, images: ByteImages) -> Posterior:
        pixels = networks.as_pixels(torch.from_numpy(images))
        return Posterior(*(array.numpy() for array in self.network.encoder(pixels)))

    @torch.no_grad()
    def pixels(self, latents: Floats) -> Floats:
        decoded: Tensor = torch.sigmoid(self.network.decoder(torch.from_numpy(latents)))
        return decoded.permute(0, 2, 3, 1).numpy()


def of_model(model: Engine | Network, prior: Prior | None, images: Images) -> Arrays:
    """The arrays of a model that samples from `prior`; None: from a mixture fitted as vae-train fits it."""

    def pixels(z: Floats) -> Floats:
        return np.concatenate([model.pixels(z[at : at + CHUNK]) for at in range(0, len(z), CHUNK)])

    def drawn(posterior: Posterior, first: int) -> NDArray[np.float64]:
        draws = math.ceil(fit_priors.FEWEST_SAMPLES / len(posterior.mean))
        return np.concatenate([posterior.sample(first + each) for each in range(draws)]).astype(np.float64)

    train, validation, test = (
        encode(model, Subset(images.pixels, rows))  # type: ignore[arg-type]  # it only calls `encode`
        for rows in (images.split.train, images.split.validation, images.split.test)
    )
    if prior is None:
        most = min(fit_priors.MOST_COMPONENTS, fit_priors.MOST_FACTORS // train.mean.shape[1] ** 2)
        mixture, _ = fit_priors.fit_mixture(drawn(train, 1), drawn(validation, 1000), most, SEED)
        prior = Prior(train.mean.shape[1:], mixture)
    rows = range(len(test.mean))
    made = {"FD N": as_bytes(pixels(prior.sample(seed=SEED, rows=rows, kind="normal")))}
    if prior.mixture is not None:
        made["FD"] = as_bytes(pixels(prior.sample(seed=SEED, rows=rows, kind="mixture")))
    return Arrays(
        {"train": train.mean, "validation": validation.mean, "test": test.mean},
        pixels(test.mean),
        test.kl().sum(axis=1),
        (pixels(validation.sample(SEED)), pixels(test.sample(SEED))),
        made,
    )


def ours(config: TrainConfig, images: Images, home: Path) -> tuple[Arrays, float]:
    """What `vae-train fit` publishes, and its seconds of training; without a rate, the last weights.

    An interrupted run is resumed.
    """
    run = home / ("ours" if config.beta else "without-rate")
    resume, start = (run / "config.json").exists(), time.monotonic()
    done = trainer.fit(config, images, run, resume=resume)
    if not done.finished:
        raise SystemExit("stopped and saved; the same command continues")
    seconds = time.monotonic() - start
    if resume:  # the time of its steps alone, without validations
        steps = np.diff([0, *(line["step"] for line in done.history)])
        speeds = np.array([line["images_per_second"] for line in done.history])
        seconds = float((steps * done.config.images_per_step / speeds).sum())
    if not config.beta:  # the ELBO falls while reconstructions get better, so it cannot select the weights
        network, _ = checkpoint.load(checkpoint.latest(run) or done.checkpoint)
        return of_model(Network(network), None, images), seconds
    bundle = publish_checkpoint(done.checkpoint, images, home / "models", done.history, stderr)
    engine = open_engine(bundle, threads=usable_cpus())
    return of_model(engine, engine.prior, images), seconds


def pca(images: Images, latent: int) -> tuple[Arrays, float]:
    from sklearn.decomposition import PCA

    rows, size = dataclasses.asdict(images.split), math.prod(images.shape)
    pixels = {part: floats(images, chosen).reshape(-1, size) for part, chosen in rows.items()}
    # As many images as the comparison with PCA on a model's card fits, for the same memory.
    few = np.random.default_rng(SEED).permutation(len(rows["train"]))[: MOST_VALUES // size]
    start = time.monotonic()
    fitted = PCA(min(latent, len(few), size), random_state=SEED).fit(pixels["train"][np.sort(few)])
    seconds = time.monotonic() - start
    means = {part: fitted.transform(array) for part, array in pixels.items()}
    restored = fitted.inverse_transform(means["test"]).reshape(-1, *images.shape)
    return Arrays(means, np.clip(restored, 0, 1)), seconds


def pytorch_vae(images: Images, config: TrainConfig) -> tuple[Arrays, float]:
    """Our network with `VanillaVAE.loss_function` of PyTorch-VAE; the best weights on validation."""
    network = networks.build(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)
    pixels, size = Pixels(images, torch.device("cpu")), config.images_per_step

    def loss(rows: Indices, purpose: str, number: int) -> Tensor:
        batch, eps = draw(config, pixels, rows, Ranks(), purpose, number)
        output = network(batch, eps)
        squares = (batch - torch.sigmoid(output.logits)).square().mean()
        return squares + 0.00025 * objective.rate(output.posterior).sum(1).mean()

    start, step, epoch, best, kept = time.monotonic(), 0, 0, math.inf, network
    while time.monotonic() < start + 60 * config.minutes:
        shuffled = order(config.seed, epoch, images.split.train)
        for at in range(0, len(shuffled) - size + 1, size):
            optimizer.zero_grad(set_to_none=True)
            loss(shuffled[at : at + size], "step", step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        schedule.step()
        epoch += 1
        held_out = images.split.validation
        with torch.no_grad():
            batches = [(at, held_out[at : at + CHUNK]) for at in range(0, len(held_out), CHUNK)]
            value = sum(len(rows) * float(loss(rows, "validation", at)) for at, rows in batches)
        if value < best:
            best, kept = value, copy.deepcopy(network)
    seconds = time.monotonic() - start
    return of_model(Network(kept), None, images), seconds


def pythae(python: str, images: Images, config: TrainConfig, conv: bool) -> tuple[Arrays, float]:
    """pythae's VAE, trained by another interpreter with benchmarks/peers/pythae_photos.py."""
    settings = {"latent": config.latent, "minutes": config.minutes, "seed": config.seed, "conv": conv}
    settings["threads"] = torch.get_num_threads()
    rows = dataclasses.asdict(images.split)
    pixels = {part: floats(images, chosen).transpose(0, 3, 1, 2) for part, chosen in rows.items()}
    quiet = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | quiet
    with tempfile.TemporaryDirectory() as folder:
        given, left = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, settings=json.dumps(settings), **pixels)  # type: ignore[arg-type]
        command = [python, "-m", "benchmarks.peers.pythae_photos", str(given), str(left)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"pythae ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        if done.stderr:
            stderr(done.stderr.strip())
        with np.load(left) as found:
            arrays: dict[str, Any] = dict(found)
    made = {"FD": arrays.get("mixture"), "FD N": arrays["normal"]}
    return Arrays(
        {part: arrays[f"mean_{part}"] for part in rows},
        arrays["restored"],
        arrays["rate"],
        (arrays["drawn_validation"], arrays["drawn_test"]),
        {name: as_bytes(pixels) for name, pixels in made.items() if pixels is not None},
    ), float(arrays["seconds"])


# --- the comparison -----------------------------------------------------------------------------------------


def train(row: str, asked: TrainConfig, images: Images, home: Path, python: str) -> tuple[Arrays, float]:
    """Train the model of a row on `asked.data` for `asked.minutes`. Returns its arrays and seconds."""
    if row == "ours":
        return ours(asked, images, home)
    if not (path := home / "ours" / "config.json").exists():
        raise SystemExit("train the row `ours` first: the others take its latent dimensions")
    config = TrainConfig.from_json(path.read_text())
    if row == "without-rate":
        return ours(config.replace(beta=0, patience=0), images, home)
    if row == "PCA":
        return pca(images, config.latent or 0)
    if row == "PyTorch-VAE":
        return pytorch_vae(images, config)
    return pythae(python, images, config, conv=row == "pythae-conv")


def measure(source: str, rows: Sequence[str], minutes: float, out: Path, python: str) -> str:
    """Train the rows that are missing in `out`/<set>, and return the table."""
    images = load(source, say=stderr)
    home, shape = out / images.name, "×".join(map(str, images.shape))
    home.mkdir(parents=True, exist_ok=True)
    missing = [row for row in rows if not (home / f"{row}.json").exists()]
    if not python and any("pythae" in row for row in missing):
        stderr("without the rows of pythae: --pythae names no interpreter")
        missing = [row for row in missing if "pythae" not in row]
    if images.shape != (64, 64, 3) and "pythae-conv" in missing:
        stderr(f"without pythae-conv: its network takes 64×64×3, the images are {shape}")
        missing.remove("pythae-conv")
    about, path, scorer = {"digest": images.digest, "minutes": minutes}, home / "set.json", None
    if path.exists() and not about.items() <= json.loads(path.read_text()).items():
        raise SystemExit(f"{home} has rows of other images or other --minutes; choose another --out")
    if missing and images.labels is not None and len(np.unique(images.labels[images.split.train])) > 1:
        scorer = classifier.train(images, SEED)
        few = np.random.default_rng(SEED).permutation(images.split.train)[: len(images.split.test)]
        test, others = (classifier.features(scorer, images.pixels[of]) for of in (images.split.test, few))
        about["FD"] = samples.frechet(test, others)
    if missing or not path.exists():
        write_atomically(path, json.dumps(about))
    for row in missing:
        stderr(f"{images.name}: {row} …")
        config = TrainConfig(data=source, minutes=minutes, seed=SEED, device="cpu")
        arrays, seconds = train(row, config, images, home, python)
        found = figures(arrays, images, scorer) | {"minutes": seconds / 60}
        write_atomically(home / f"{row}.json", json.dumps(found, indent=2) + "\n")
    counts = ", ".join(f"{len(of)} {part}" for part, of in dataclasses.asdict(images.split).items())
    return f"{images.name}: {counts} images of {shape}\n\n{table(home)}"


def table(home: Path) -> str:
    """The rows in a folder as a Markdown table, and below it two figures that are no rows."""
    found = {row: json.loads(path.read_text()) for row in ROWS if (path := home / f"{row}.json").exists()}
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for row, values in found.items():
        cells = [format(values[name], form) if name in values else "–" for name, form in COLUMNS.items()]
        if "FD N" in values:
            cells[list(COLUMNS).index("FD")] += f" ({values['FD N']:{COLUMNS['FD']}})"
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append("")
    if (real := json.loads((home / "set.json").read_text()).get("FD")) is not None:
        lines.append(f"FD of real training images: {real:{COLUMNS['FD']}}")
    if {"ours", "PCA"} <= found.keys():
        lines.append(f"MSE of ours over that of PCA: {found['ours']['MSE'] / found['PCA']['MSE']:.3f}")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="SET", help="a folder of images, or a set of `vae-train`")
    parser.add_argument(
        "--pythae", metavar="PYTHON", default="", help="interpreter of an environment with pythae"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="training of each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    asked = parser.parse_args(words)
    tables = [measure(each, asked.rows, asked.minutes, asked.out, asked.pythae) for each in asked.sets]
    print("\n".join(tables))


if __name__ == "__main__":
    main()
