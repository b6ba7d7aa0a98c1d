"""One training step: the loss of a batch, its gradient, and whether the gradient is applied."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainConfig
from training.fit.distributed import Ranks
from training.fit.schedule import Plan, clip_bound, is_spike, kl_weight, learning_rate
from training.fit.state import State
from training.model import objective
from training.model.networks import Output


@dataclass(frozen=True)
class Outcome:
    """The result of a step over all processes."""

    loss: float
    norm: float  # of the gradient, before it is clipped
    taken: bool  # False: skipped, the weights are unchanged
    lr: float
    beta: float


def train_step(
    config: TrainConfig,
    plan: Plan,
    now: State,
    forward: Callable[[Tensor, Tensor], Output],
    images: Tensor,
    eps: Tensor,
    ranks: Ranks,
) -> Outcome:
    """Change `now` by one step on this process's share of a batch, `images` [n, c, h, w] and `eps` [n, d],
    or [n, k, d] for a bound of k samples."""
    lr = learning_rate(config, now.step, plan.total)
    beta = config.beta * kl_weight(config, now.step, plan.total)
    for group in now.optimizer.param_groups:
        group["lr"] = lr
    output = forward(images, eps)
    total = ranks.sum if ranks.size > 1 else None
    distortions, squares = objective.distortions(
        now.network.likelihood, output, images, total=total, levels=config.levels
    )
    terms = objective.terms(distortions, output)
    if config.iwae == 1:
        loss = objective.loss(terms, beta, config.free_bits)
    else:
        loss = -objective.bound(distortions, output, beta).mean()
    # DDP takes the mean over processes, whose shares may differ by an image.
    loss = loss * (len(images) * ranks.size / config.images_per_step)
    now.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm_tensor = torch.nn.utils.clip_grad_norm_(now.network.parameters(), clip_bound(config, now.norms))
    figures = torch.stack([loss.detach(), terms.distortion.sum(), terms.rate.sum(), squares])
    figures = ranks.sum(figures.detach())
    # One wait for the device, not five.
    value, distortion, rate, squared, norm = torch.cat([figures, norm_tensor.reshape(1)]).tolist()
    value /= ranks.size

    finite = math.isfinite(norm) and math.isfinite(value)
    taken = finite and not is_spike(config, norm, now.norms)
    if taken:
        variance = objective.optimal_variance(
            figures[-1], config.images_per_step * math.prod(images.shape[1:])
        )
        now.apply_gradient(variance, config.ema)
        now.count(distortion=distortion, rate=rate, squares=squared, images=config.images_per_step)
    else:
        now.count(skipped=1)
    now.end_step(norm, finite=finite)
    return Outcome(value, norm, taken, lr, beta)
