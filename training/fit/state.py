"""The state of a run at one step: everything in a checkpoint, and how a step changes it."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.fit.schedule import NORMS
from training.model.networks import VAE

SUMS = ("distortion", "rate", "squares", "images", "skipped")


@dataclasses.dataclass
class State:
    """Network, averaged network and optimiser after `step` steps, and running statistics."""

    network: VAE
    average: VAE  # the EMA of the weights and of σ², which is evaluated and exported
    optimizer: torch.optim.AdamW
    step: int = 0
    norms: list[float] = dataclasses.field(default_factory=list)  # of the last gradients
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    validation: dict[str, float] | None = None
    best: dict[str, Any] | None = None  # {"step", "elbo" (or bound)} of the best since the KL warm-up
    bad: int = 0  # non-finite steps in a row; not in the checkpoint, because none is written then

    def tensors(self) -> dict[str, Any]:
        """The half of a checkpoint that is tensors, all from the same step."""
        return {
            "network": self.network.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def record(self) -> dict[str, Any]:
        """The readable half."""
        names = ("step", "validation", "best", "norms", "sums")
        return {name: getattr(self, name) for name in names}

    def restore(self, record: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Restore the state that `record` and `tensors` describe."""
        for name in self.record():
            setattr(self, name, record[name])
        self.network.load_state_dict(tensors["network"])
        self.average.load_state_dict(tensors["ema"])
        self.optimizer.load_state_dict(tensors["optimizer"])

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.network.parameters())

    def apply_gradient(self, variance: Tensor, decay: float) -> None:
        """Step the optimiser and the average, whose decay grows so that the first weights fade quickly."""
        self.optimizer.step()
        average_into(self.average, self.network, variance, min(decay, (1 + self.step) / (10 + self.step)))

    def count(self, **amounts: float) -> None:
        """Add to the sums since the last evaluation."""
        for name, amount in amounts.items():
            self.sums[name] += amount

    def mean(self, name: str) -> float:
        """The mean per image since the last evaluation, without skipped steps."""
        return self.sums[name] / max(self.sums["images"], 1)

    def end_step(self, norm: float, *, finite: bool) -> None:
        """Record the gradient norm of a step and count the step."""
        # A finite spike counts for the median too, so it adapts if large gradients persist.
        self.norms = [*self.norms, norm][-NORMS:] if finite else self.norms
        self.bad = 0 if finite else self.bad + 1
        self.step += 1


def start(network: VAE, config: TrainConfig, device: torch.device) -> State:
    """The state before the first step, on `device`."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5× as fast on CPU at 28×28
    average = copy.deepcopy(network).eval().requires_grad_(False)
    return State(network, average, _optimizer(network, config))


@torch.no_grad()
def average_into(average: VAE, network: VAE, variance: Tensor, decay: float) -> None:
    """average ← decay·average + (1 − decay)·network, and the same for σ², which is a buffer of `average`."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    average.variance.lerp_(variance, 1 - decay)


def _optimizer(network: VAE, config: TrainConfig) -> torch.optim.AdamW:
    """Weights of convolutions and linear layers decay, biases do not."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
