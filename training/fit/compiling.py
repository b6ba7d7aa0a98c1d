"""Uses torch.compile if it works: it needs a C++ compiler, which some machines lack."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


def compiled(network: nn.Module, images: Tensor, eps: Tensor, say: Callable[[str], None]) -> nn.Module:
    """Compile the network for batches like `images` and `eps`; return it unchanged if that fails.

    A forward and a backward pass run here, so that an error appears now and not in the training loop.
    """
    say("compiling the network, which takes a minute or two …")
    fast = cast(nn.Module, torch.compile(network))
    try:
        logits, posterior, _, log_prior, scale = fast(images, eps)
        parts = (logits, *posterior, log_prior, scale)
        sum(part.sum() for part in parts if part is not None).backward()
    except Exception as error:  # of any kind: training without it is only slower
        torch._dynamo.reset()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        say(f"continuing without torch.compile, which failed: {reason[0]}")
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return fast
