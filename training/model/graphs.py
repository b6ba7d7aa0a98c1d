"""The networks as they are exported: uint8 [n, h, w, c] outside, so that no caller normalises images.

Normalisation, layout and rounding are in the graphs. Randomness is not: every answer of a graph can be
repeated.
"""

import torch
from torch import Tensor, nn

from training.model.flow import Flow, log_standard_normal
from training.model.likelihoods import LIKELIHOODS, Likelihood
from training.model.networks import as_pixels


class EncoderGraph(nn.Module):
    """encoder.onnx: `image` uint8 [n, h, w, c] → `mean`, `logvar` float32 [n, d]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(as_pixels(image))
        return mean, logvar


class DecoderGraph(nn.Module):
    """decoder.onnx: `z` float32 [n, d] → `image` uint8, `pixels` float32 in [0, 1], both [n, h, w, c]."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood = LIKELIHOODS["gaussian"]) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.likelihood.mean(self.decoder(z)).permute(0, 2, 3, 1)
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8), pixels


class PriorGraph(nn.Module):
    """prior.onnx: `eps` float32 [n, d] → `z` float32 [n, d]."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, eps: Tensor) -> Tensor:
        return self.flow.sample(eps)


class DensityGraph(nn.Module):
    """density.onnx: `z` float32 [n, d] → its noise `eps` float32 [n, d] and `log_density` [n] in nats."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        eps, log_det = self.flow.normalise(z)
        return eps, log_standard_normal(eps) + log_det
