"""How large a step is and when there are no more: learning rate, weight of the rate, outsized gradients."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from training.config import TrainConfig

EVALUATE_EVERY = 200  # steps at least: tiny sets would otherwise spend their time on validation and syncing
NORMS = 100  # gradient norms that the running median looks back on
FEWEST_NORMS = 20  # before it is trusted


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear to `config.lr` over the warm-up's steps, then half a cosine down to 0 after the last step."""
    warmup = config.lr_warmup * total
    if step < warmup:
        return config.lr * (step + 1) / (math.floor(warmup) + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def kl_weight(config: TrainConfig, step: int, total: int) -> float:
    """From 0 to 1, linear over the KL warm-up: else latents are given up before the decoder can use them."""
    return min(1.0, step / max(config.kl_warmup * total, 1))


def clip_bound(config: TrainConfig, norms: list[float]) -> float:
    """The gradient norm above which a step is scaled down: infinite until the median can be trusted."""
    return config.clip_factor * statistics.median(norms) if len(norms) >= FEWEST_NORMS else math.inf


def is_spike(config: TrainConfig, norm: float, norms: list[float]) -> bool:
    """Whether a gradient is so far above the running median that its step would do harm."""
    return len(norms) >= FEWEST_NORMS and norm > config.skip_factor * statistics.median(norms)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run in steps. Stopping early leaves the learning rate's course as it is: that of `total` steps."""

    per_epoch: int
    total: int
    evaluate_every: int  # whole epochs
    warm: int  # the last step of the KL warm-up: validation before it selects nothing
    patience: int  # steps without a better validation; 0: no end before `total`

    def evaluates(self, step: int) -> bool:
        return step == self.total or step % self.evaluate_every == 0

    def over(self, step: int, best: Mapping[str, Any] | None) -> bool:
        return step >= self.total or self.stale(step, best)

    def stale(self, step: int, best: Mapping[str, Any] | None) -> bool:
        """Whether validation has not improved for the whole patience, which only an evaluation can end."""
        return self.patience > 0 and best is not None and step - best["step"] >= self.patience


def plan(config: TrainConfig, images: int) -> Plan:
    """The plan of a resolved config for `images` training images."""
    assert config.epochs is not None  # resolved
    per_epoch = images // config.batch
    total = config.epochs * per_epoch
    evaluate_every = per_epoch * math.ceil(EVALUATE_EVERY / per_epoch)
    return Plan(
        per_epoch,
        total,
        evaluate_every,
        warm=math.floor(config.kl_warmup * total),
        patience=config.patience * evaluate_every,
    )
