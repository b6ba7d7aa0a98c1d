"""Evaluates the averaged weights on the validation images at β = 1, which selects the checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

from training.config import TrainConfig
from training.data.images import Indices
from training.fit.batches import Pixels, draw
from training.fit.distributed import Ranks
from training.model import objective
from training.model.networks import VAE, Output

ALONE = Ranks()


@torch.no_grad()
def evaluate(
    network: VAE, pixels: Pixels, rows: Indices, config: TrainConfig, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Means over images: ELBO (β = 1), distortion and rate in nats, under the prior of the config; MSE of
    reconstructions from the mean; and `iwae` if the config trains that bound.

    The noise is the same every time, so two evaluations differ only by their weights.
    """
    sums: list[Tensor] = []  # of each batch: the last one is smaller
    for start in range(0, len(rows), config.images_per_step):
        batch = rows[start : start + config.images_per_step]
        images, eps = draw(config, pixels, batch, ranks, "validation", start)
        output: Output = network(images, eps)
        distortions, _ = objective.distortions(
            network.likelihood, output, images, variance=network.variance, levels=config.levels
        )
        terms, bound = objective.terms(distortions, output), objective.bound(distortions, output)
        restored = network.likelihood.mean(network.decoder(output.posterior.mean))
        errors = (images - restored).square().flatten(1).mean(1)
        sums.append(torch.stack([terms.distortion.sum(), terms.rate.sum(), errors.sum(), bound.sum()]))
    totals = ranks.sum(torch.stack(sums)).cpu().double().sum(0)
    distortion, rate, mse, iwae = (totals / len(rows)).tolist()
    figures = {"elbo": -distortion - rate, "distortion": distortion, "rate": rate, "mse": mse, "n": len(rows)}
    return figures | ({"iwae": iwae} if config.iwae > 1 else {})


def selection_score(figures: Mapping[str, float]) -> float:
    """The number that selects a checkpoint: the trained bound, which is the ELBO for one sample."""
    return figures.get("iwae", figures["elbo"])
