"""torch.compile where it works: it needs a C++ compiler, which not every machine has."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


def compiled(network: nn.Module, images: Tensor, eps: Tensor, say: Callable[[str], None]) -> nn.Module:
    """The network compiled for batches like `images` and `eps`, or as it was where that fails.

    A forward and a backward pass are run here, so that whatever fails does so now and not in the loop.
    """
    say("compiling the network, which takes a minute or two …")
    fast = cast(nn.Module, torch.compile(network))
    try:
        logits, posterior, _, log_prior, scale = fast(images, eps)
        parts = (logits, *posterior, log_prior, scale)
        sum(part.sum() for part in parts if part is not None).backward()
    except Exception as error:  # whatever it is: training without is only slower
        torch._dynamo.reset()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        say(f"going on without torch.compile, it failed here: {reason[0]}")
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return fast
