"""A RealNVP as the prior that is trained together with the model: affine coupling blocks on the latents.

Posteriors that must match N(0, I) cost nats; a prior that adapts to the posteriors costs less (Xu et al.,
arXiv 1905.13452). Each block shifts and scales one half of the dimensions as a function of the other half,
and the halves alternate. So both directions take one pass, and the Jacobian is triangular (Dinh et al., arXiv
1605.08803). An untrained flow is the identity, so its density is N(0, I).
"""

import math

import torch
from torch import Tensor, nn

LOG_SCALE_LIMIT = 2.0  # a block scales by 0.14 to 7.4, which moves mass and cannot overflow


class Coupling(nn.Module):
    """One block: log-scales and shifts of `moved` dimensions from `kept` others."""

    def __init__(self, kept: int, moved: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(kept, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 2 * moved)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """[n, kept] → log-scale and shift, [n, moved] each."""
        hidden = nn.functional.silu(self.second(nn.functional.silu(self.first(kept))))
        log_scale, shift = self.last(hidden).chunk(2, dim=1)
        # tanh, because a clamped value has no gradient.
        return LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT), shift


class Flow(nn.Module):
    """p(z) of latents float32 [n, d], d ≥ 2: noise ~ N(0, I) after `blocks` couplings."""

    def __init__(self, latent: int, blocks: int, hidden: int) -> None:
        super().__init__()
        if latent < 2:
            raise ValueError(f"a flow on {latent} latent dimension cannot split it; use two or more")
        self.split = (latent + 1) // 2
        halves = self.split, latent - self.split
        self.blocks = nn.ModuleList(
            Coupling(halves[block % 2], halves[(block + 1) % 2], hidden) for block in range(blocks)
        )

    def normalise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents [n, d] to their noise [n, d], with log |det ∂noise/∂z| [n]."""
        halves, log_det = [z[:, : self.split], z[:, self.split :]], torch.zeros_like(z[:, 0])
        for number, block in enumerate(self.blocks):
            kept, moved = number % 2, (number + 1) % 2
            log_scale, shift = block(halves[kept])
            halves[moved] = halves[moved] * log_scale.exp() + shift
            log_det = log_det + log_scale.sum(1)
        return torch.cat(halves, dim=1), log_det

    def sample(self, eps: Tensor) -> Tensor:
        """Map noise [n, d] to latents [n, d], the inverse of `normalise`."""
        halves = [eps[:, : self.split], eps[:, self.split :]]
        for number, block in reversed(list(enumerate(self.blocks))):
            kept, moved = number % 2, (number + 1) % 2
            log_scale, shift = block(halves[kept])
            halves[moved] = (halves[moved] - shift) * (-log_scale).exp()
        return torch.cat(halves, dim=1)

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) of latents [n, d], in nats, [n]."""
        eps, log_det = self.normalise(z)
        return log_standard_normal(eps) + log_det


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of [n, d], in nats, [n]."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
