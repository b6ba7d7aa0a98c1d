"""Measures what each design choice contributes: one change at a time, several seeds, one table.

    python -m benchmarks.ablation      # digits, three seeds, the epochs of `vae-train fit`
    python -m benchmarks.ablation --data mnist --likelihood bernoulli --latent 40 --epochs 2

Every row is `vae-train fit` with one difference. The seed decides weights, order and noise, and the split
(80/10/10) of digits. ELBO, rate and MSE are those of the test images, probe and 5-NN those of their means.
The ELBO has β = 1, the prior in training, and the probability of each pixel's grey level, so that likelihoods
are comparable. The last column is the row's ELBO minus that of `defaults`, paired by seed.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import _mean, split
from training.config import TrainConfig
from training.data import images as data
from training.data.load import load
from training.evaluation import metrics
from training.fit import checkpoint, trainer
from training.fit.batches import Pixels, draw
from training.fit.progress import Silent
from training.fit.validation import ALONE
from training.model import networks, objective
from training.model.likelihoods import Likelihood
from training.model.networks import VAE, Residual

FIGURES = ("ELBO", "rate", "MSE", "probe", "5-NN")
FEW = 10_000  # images; smaller sets are trained in float32, which is not slower there


def with_norms(config: TrainConfig) -> VAE:
    """The network with GroupNorm in its residual blocks at any depth."""
    with patch.object(networks, "MOST_NORM_FREE", 0):
        return networks.build(config)


def random_branches(config: TrainConfig) -> VAE:
    """The network with residual branches that do not start at zero."""
    network = networks.build(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for module in network.modules():
            if isinstance(module, Residual):
                module.last.reset_parameters()
    return network


def unit_variance(
    likelihood: Likelihood,
    output: networks.Output,
    pixels: Tensor,
    *,
    levels: int | None,
    variance: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`objective.distortions` with σ = 1 in training; validation has the measured σ."""
    given = pixels.new_ones(()) if variance is None else variance
    return DISTORTIONS(likelihood, output, pixels, levels=levels, variance=given, total=total)


DISTORTIONS = objective.distortions
ROWS: dict[str, tuple[dict[str, object], Callable[[TrainConfig], VAE]]] = {
    "defaults (pre, zero branches)": ({}, networks.build),
    "branches start at random": ({}, random_branches),
    "activation post": ({"activation": "post"}, networks.build),
    "GroupNorm": ({}, with_norms),
    "no averaged weights": ({"ema": 0.0}, networks.build),
    "no KL warm-up": ({"kl_warmup": 0.0}, networks.build),
    "KL warm-up 20 %": ({"kl_warmup": 0.2}, networks.build),
    "width 16": ({"width": 16}, networks.build),
    "8 latents": ({"latent": 8}, networks.build),
    "32 latents": ({"latent": 32}, networks.build),
    "64 latents": ({"latent": 64}, networks.build),
    "flow prior, 4 blocks": ({"prior": "flow", "flow_blocks": 4}, networks.build),
    "flow prior, 8 blocks": ({"prior": "flow", "flow_blocks": 8}, networks.build),
    "flow prior, 16 blocks": ({"prior": "flow", "flow_blocks": 16}, networks.build),
    "logistic": ({"likelihood": "logistic"}, networks.build),
    "σ = 1": ({}, networks.build),
}


@torch.no_grad()
def figures(network: VAE, images: data.Images, config: TrainConfig) -> dict[str, float]:
    """The figures of the test images."""
    pixels, rows = Pixels(images, torch.device("cpu")), dataclasses.asdict(images.split)
    sums = np.zeros(3)
    for at in range(0, len(rows["test"]), config.images_per_step):
        chosen = rows["test"][at : at + config.images_per_step]
        batch, eps = draw(config, pixels, chosen, ALONE, "validation", at)
        output = network(batch, eps)
        restored = network.likelihood.mean(network.decoder(output.posterior.mean))
        log_mass = masses(network, config, batch, network.likelihood.mean(output.logits))
        rate = float(objective.terms(torch.zeros(len(batch), 1), output).rate.sum())
        sums += log_mass - rate, rate, float((batch - restored).square().flatten(1).mean(1).sum())
    elbo, rate, mse = sums / len(rows["test"])
    codes = {
        part: torch.cat(
            [network.encoder(pixels.batch(chosen[at : at + 1000])).mean for at in range(0, len(chosen), 1000)]
        ).numpy()
        for part, chosen in rows.items()
    }
    assert images.labels is not None
    labels = {part: images.labels[chosen] for part, chosen in rows.items()}
    return {
        "ELBO": elbo,
        "rate": rate,
        "MSE": mse,
        "probe": metrics.linear_probe(codes, labels),
        "5-NN": metrics.nearest_neighbours(codes, labels),
    }


def masses(network: VAE, config: TrainConfig, images: Tensor, means: Tensor) -> float:
    """The sum of log P(x|z) over images [n, c, h, w] in [0, 1], given the likelihood's means, as served."""
    learned = None if network.scale is None else float(network.scale)
    likelihood = network.likelihood.record(learned, lambda: float(network.variance))
    x = (images * 255).round().byte().movedim(1, -1).numpy()
    return float(likelihood.log_prob(x, means.movedim(1, -1).numpy(), config.levels or 256).sum())


def trained(name: str, images: data.Images, base: TrainConfig) -> dict[str, float]:
    """Train one row, with its changes to `base`, and return its figures."""
    changes, build = ROWS[name]
    config = base.replace(**changes)  # type: ignore[arg-type]
    distortions = unit_variance if name == "σ = 1" else DISTORTIONS
    with tempfile.TemporaryDirectory() as folder, patch.object(objective, "distortions", distortions):
        run = trainer.fit(config, images, Path(folder) / "run", progress=Silent(), build=build)
        best = build(run.config)
        best.load_state_dict(checkpoint.read_tensors(run.checkpoint)["ema"])
    return figures(best.eval(), images, run.config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each design choice contributes.")
    parser.add_argument("--data", default="digits", help="a set with labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: that of `vae-train fit`")
    parser.add_argument("--likelihood", default="auto", help="of the rows that do not change it")
    parser.add_argument("--latent", type=int, help="of the rows that do not change it")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys([next(iter(ROWS)), *arguments.only]))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    loaded = load(arguments.data)
    for seed in range(arguments.seeds):
        base = TrainConfig(
            seed=seed,
            epochs=arguments.epochs,
            likelihood=arguments.likelihood,
            latent=arguments.latent,
            precision="auto" if len(loaded.pixels) > FEW else "float32",
            compile=False,
        )
        images = split(loaded, seed) if arguments.data == "digits" else loaded
        for name in names:
            found[name].append(trained(name, images, base))
            shown = {key: round(value, 4) for key, value in found[name][-1].items()}
            print(f"seed {seed}  {name:34s}", shown, flush=True)
    print(f"\n| | {' | '.join(FIGURES)} | ELBO gained |\n|{'---|' * (len(FIGURES) + 2)}")
    for name, rows in found.items():
        cells = [_mean([row[figure] for row in rows]) for figure in FIGURES]
        gains = [row["ELBO"] - base["ELBO"] for row, base in zip(rows, found[names[0]], strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {_mean(gains) if np.any(gains) else '–'} |")


if __name__ == "__main__":
    main()
