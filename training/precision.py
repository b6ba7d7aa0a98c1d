"""In which precision the network trains: bfloat16 where the processor itself multiplies in it.

On a CPU with AMX the reference network trains 1.9 times as fast in bfloat16; on one without, half as fast.
Weights, losses, optimiser, validation and all that is exported stay float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.config import Precision
from training.networks import Posterior


def chosen(asked: Precision, device: torch.device) -> Precision:
    """`auto` is bfloat16 on a CPU with AMX, else float32 (which on a GPU means TF32 in convolutions)."""
    if asked != "auto":
        return asked
    if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False):
        return "bfloat16"
    return "float32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which the network computes; it does nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def cast(
    network: nn.Module, precision: Precision, device: torch.device
) -> Callable[[Tensor, Tensor], tuple[Tensor, Posterior]]:
    """The network as a function of float32 images and noise to float32 logits and posterior."""

    def forward(images: Tensor, eps: Tensor) -> tuple[Tensor, Posterior]:
        with autocast(precision, device):
            logits, posterior = network(images, eps)
        return logits.float(), Posterior(posterior.mean.float(), posterior.logvar.float())

    return forward
