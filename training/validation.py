"""How good the averaged weights are on the validation images, at β = 1: this is what selects a checkpoint."""

import torch
from torch import Tensor

from training import objective
from training.batches import Pixels, draw
from training.config import TrainConfig
from training.data import Indices
from training.distributed import Ranks
from training.networks import VAE

ALONE = Ranks()


@torch.no_grad()
def evaluate(
    network: VAE, pixels: Pixels, rows: Indices, config: TrainConfig, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Means over images: ELBO (β = 1), distortion and rate in nats; MSE of reconstructions from the mean.

    With the same noise every time, so that two evaluations differ by their weights alone.
    """
    sums: list[Tensor] = []  # of each batch: the last one is smaller
    for start in range(0, len(rows), config.batch):
        batch = rows[start : start + config.batch]
        images, eps = draw(config, pixels, batch, ranks, "validation", start)
        logits, posterior = network(images, eps)
        terms, _ = objective.terms(config.kind, logits, images, posterior, network.variance)
        errors = (images - torch.sigmoid(network.decoder(posterior.mean))).square().flatten(1).mean(1)
        sums.append(torch.stack([terms.distortion.sum(), terms.rate.sum(), errors.sum()]))
    totals = ranks.sum(torch.stack(sums)).cpu().double().sum(0)
    distortion, rate, mse = (totals / len(rows)).tolist()
    return {"elbo": -distortion - rate, "distortion": distortion, "rate": rate, "mse": mse, "n": len(rows)}
