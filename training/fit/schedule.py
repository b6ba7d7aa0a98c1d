"""The schedule of a run: learning rate, weight of the rate, bounds on gradients, evaluations and the end."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

from training.config import TrainConfig

EVALUATIONS = (20, 40)  # in a run: as many as fit into EVALUATION_SHARE of its time
EVALUATION_SHARE = 0.05
FEWEST_EVALUATED = 10_000  # images, where there are as many
EVALUATION_COST = 0.55  # of an image, in training images: measured at 28×28 and 64×64
NORMS = 100  # gradient norms in the running median
FEWEST_NORMS = 20  # before it is trusted


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear to `config.lr` over the warm-up's steps, then half a cosine down to 0 after the last step."""
    warmup = config.lr_warmup * total
    if step < warmup:
        return config.lr * (step + 1) / (math.floor(warmup) + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def kl_weight(config: TrainConfig, step: int, total: int) -> float:
    """From 0 to 1, linear over the KL warm-up; without it, latents collapse before the decoder uses them."""
    return min(1.0, step / max(config.kl_warmup * total, 1))


def clip_bound(config: TrainConfig, norms: list[float]) -> float:
    """The gradient norm above which a step is scaled down: infinite until the median can be trusted."""
    return config.clip_factor * statistics.median(norms) if len(norms) >= FEWEST_NORMS else math.inf


def is_spike(config: TrainConfig, norm: float, norms: list[float]) -> bool:
    """Whether a gradient is so far above the running median that the step would do harm."""
    return len(norms) >= FEWEST_NORMS and norm > config.skip_factor * statistics.median(norms)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run in steps. The learning rate follows `total` steps, also if the run stops early."""

    per_epoch: int
    total: int
    evaluate_every: int
    evaluated: int  # validation images
    warm: int  # the last step of the KL warm-up; earlier validations select nothing
    patience: int  # steps without a better validation after which the run ends; 0: only at `total`
    extended_at: int = 0  # patience counts from here

    def evaluates(self, step: int) -> bool:
        return step == self.total or step % self.evaluate_every == 0

    def over(self, step: int, best: Mapping[str, Any] | None) -> bool:
        return step >= self.total or self.stale(step, best)

    def stale(self, step: int, best: Mapping[str, Any] | None) -> bool:
        """Whether validation has not improved for `patience` steps."""
        if not self.patience or best is None:
            return False
        since = max(int(best["step"]), self.extended_at)
        return step - since >= self.patience


def plan(config: TrainConfig, images: int, validation: int) -> Plan:
    """The plan of a resolved config for so many training and validation images."""
    assert config.epochs is not None  # resolved
    per_epoch = images // config.images_per_step
    total = config.epochs * per_epoch
    fewest, most = EVALUATIONS
    affordable = EVALUATION_SHARE * config.epochs * images / EVALUATION_COST  # validation images in all
    evaluated = min(validation, max(FEWEST_EVALUATED, int(affordable / fewest)))
    evaluations = min(max(int(affordable / evaluated), fewest), most)
    evaluate_every = config.evaluate_every or max(1, total // evaluations)
    return Plan(
        per_epoch,
        total,
        evaluate_every,
        evaluated,
        warm=math.floor(config.kl_warmup * total),
        patience=config.patience * evaluate_every,
        extended_at=config.extended_at,
    )
