"""What a step is given: images and random numbers, reproducible from (seed, purpose, number) alone."""

import numpy as np
import torch
from torch import Tensor

from training.data import Images, Indices


class Pixels:
    """The images, uint8 until a batch is taken: on the GPU whole, on the CPU wherever the array lies."""

    def __init__(self, data: Images, device: torch.device) -> None:
        self.device = device
        self._array = data.pixels
        self._resident = None if device.type == "cpu" else torch.from_numpy(data.pixels).to(device)

    def batch(self, rows: Indices) -> Tensor:
        """Rows of the set as float32 [n, c, h, w] in [0, 1], in channels-last memory as they already lie."""
        if self._resident is None:
            taken = torch.from_numpy(self._array[rows])
        else:
            taken = self._resident[torch.from_numpy(rows).to(self.device)]
        return taken.permute(0, 3, 1, 2).to(torch.float32) / 255


def order(seed: int, epoch: int, rows: Indices) -> Indices:
    """The epoch's permutation of the rows; its last rows, too few for a batch, are left out by the caller."""
    return np.random.Generator(np.random.PCG64(_mix(seed, "epoch", epoch))).permutation(rows)


def generator(device: torch.device, seed: int, purpose: str, number: int) -> torch.Generator:
    """Random numbers that depend on these alone, so they are the same after a resume."""
    return torch.Generator(device).manual_seed(_mix(seed, purpose, number))


def _mix(seed: int, purpose: str, number: int) -> int:
    """32 well-mixed bits: torch's CPU generator looks at no more, and takes neighbouring seeds badly."""
    words = [seed, *purpose.encode(), number]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])
