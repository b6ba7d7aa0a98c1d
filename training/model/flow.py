"""The prior that is trained together with the model: affine coupling blocks on the latents, a RealNVP.

A VAE whose posteriors must look like N(0, I) pays for it in nats; one whose prior may take the shape of its
posteriors pays less (Xu et al., arXiv 1905.13452). Each block shifts and scales one half of the dimensions by
what it sees of the other, and the halves take turns; so both directions take one pass, and the Jacobian is
triangular (Dinh et al., arXiv 1605.08803). It begins as the identity, that is, as N(0, I).
"""

import math

import torch
from torch import Tensor, nn

LOG_SCALE_LIMIT = 2.0  # a block scales by 0.14 to 7.4: enough to move mass, too little to overflow


class Coupling(nn.Module):
    """What one block does to `moved` numbers, seen `kept` others: their log-scales and shifts."""

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
        # tanh, not a clamp: a clamped value has no gradient to come back with.
        return LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT), shift


class Flow(nn.Module):
    """p(z) of latents float32 [n, d], d ≥ 2, as noise ~ N(0, I) that `blocks` couplings have moved."""

    def __init__(self, latent: int, blocks: int, hidden: int) -> None:
        super().__init__()
        if latent < 2:
            raise ValueError("a coupling moves some dimensions by others: it needs two")
        self.split = (latent + 1) // 2
        halves = self.split, latent - self.split
        self.blocks = nn.ModuleList(
            Coupling(halves[block % 2], halves[(block + 1) % 2], hidden) for block in range(blocks)
        )

    def normalise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [n, d] → the noise that they came from, [n, d], and log |det ∂noise/∂z| [n]."""
        halves, log_det = [z[:, : self.split], z[:, self.split :]], torch.zeros_like(z[:, 0])
        for number, block in enumerate(self.blocks):
            kept, moved = number % 2, (number + 1) % 2
            log_scale, shift = block(halves[kept])
            halves[moved] = halves[moved] * log_scale.exp() + shift
            log_det = log_det + log_scale.sum(1)
        return torch.cat(halves, dim=1), log_det

    def sample(self, eps: Tensor) -> Tensor:
        """Noise [n, d] → latents [n, d]: the inverse of `normalise`."""
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


class PriorGraph(nn.Module):
    """prior.onnx: `eps` float32 [n, d] → `z` float32 [n, d]."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, eps: Tensor) -> Tensor:
        return self.flow.sample(eps)


class DensityGraph(nn.Module):
    """density.onnx: `z` float32 [n, d] → `eps` float32 [n, d], its noise, and `log_density` [n] in nats."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        eps, log_det = self.flow.normalise(z)
        return eps, log_standard_normal(eps) + log_det
