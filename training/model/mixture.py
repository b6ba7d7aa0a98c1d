"""A mixture of Gaussians as the prior that is trained together with the model.

Under one Gaussian all posteriors share one cloud. Under a mixture, similar images gather around one component
(VaDE, Jiang et al., arXiv 1611.05148): the rate is lower, and classes lie further apart. The mixture is not
exported. What is served is fitted to the posteriors afterwards, as for every model
(training/publishing/fit_priors.py).
"""

import math

import torch
from torch import Tensor, nn


class Mixture(nn.Module):
    """p(z) = Σ wₖ N(z; meanₖ, (WₖᵀWₖ)⁻¹) of latents float32 [n, d], with Wₖ lower triangular.

    It starts as `components` unit Gaussians whose means are samples of N(0, I).
    """

    strict_lower: Tensor

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent))
        self.log_diagonals = nn.Parameter(torch.zeros(components, latent))  # of W
        self.lower = nn.Parameter(torch.zeros(components, latent, latent))  # below the diagonals
        self.register_buffer("strict_lower", torch.ones(latent, latent).tril(-1), persistent=False)

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) of latents [n, d], in nats, [n]."""
        factors = self.lower * self.strict_lower + torch.diag_embed(self.log_diagonals.exp())
        # W z − W mean, not W (z − mean): [n, k, d] once instead of twice.
        noise = torch.einsum("kij,nj->nki", factors, z) - torch.einsum("kij,kj->ki", factors, self.means)
        log_densities = self.log_diagonals.sum(1) - 0.5 * (
            noise.square().sum(2) + z.shape[1] * math.log(2 * math.pi)
        )
        return torch.logsumexp(self.logits.log_softmax(0) + log_densities, dim=1)
