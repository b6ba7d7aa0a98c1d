"""How large a step is: learning rate, weight of the rate, and what is done about outsized gradients."""

import math
import statistics

from training.config import TrainConfig

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
