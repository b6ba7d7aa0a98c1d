"""The images and random numbers of a step, determined by (seed, purpose, number)."""

import numpy as np
import torch
from torch import Tensor

from training.config import NO_AUGMENTATION, TrainConfig
from training.data.images import ByteImages, Images, Indices
from training.fit.augment import augment
from training.fit.distributed import Ranks
from training.model import objective
from training.model.likelihoods import LIKELIHOODS
from training.model.networks import as_pixels


class Pixels:
    """The images of a run, uint8 until a batch is taken, and on the GPU if they fit."""

    def __init__(self, data: Images, device: torch.device) -> None:
        self.device = device
        self._array = data.pixels
        self._resident = _resident(data.pixels, device)

    def batch(self, rows: Indices) -> Tensor:
        """Rows of the set as float32 [n, c, h, w] in [0, 1], in channels-last memory."""
        if self._resident is None:
            taken = _moved(torch.from_numpy(self._array[rows]), self.device)
        else:
            taken = self._resident[_moved(torch.from_numpy(rows), self.device)]
        return as_pixels(taken)


def _resident(pixels: ByteImages, device: torch.device) -> Tensor | None:
    """The whole set on the GPU, if that leaves half of the free memory to the network."""
    if device.type == "cpu":
        return None
    if device.type == "cuda" and pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return None
    whole = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), 4096):
        whole[start : start + 4096] = torch.from_numpy(np.array(pixels[start : start + 4096]))
    return whole


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device` without waiting: a copy from pinned memory overlaps with the computation."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def draw(
    config: TrainConfig, pixels: Pixels, rows: Indices, ranks: Ranks, purpose: str, number: int
) -> tuple[Tensor, Tensor]:
    """This process's share of the batch `rows`: images [n, c, h, w], noise [n, d], or [n, k, d] for a
    bound of k samples.

    Images are augmented for a training step (`purpose: step`) and binarised for a Bernoulli. Random numbers
    are drawn for the whole batch, so they do not depend on the number of processes.
    """
    assert config.latent is not None  # resolved
    noise = generator(pixels.device, config.seed, purpose, number)
    images = pixels.batch(ranks.mine(rows))
    if purpose == "step" and config.augmentation not in (None, NO_AUGMENTATION):
        changes = generator(pixels.device, config.seed, "augment", number)
        uniform = torch.rand(len(rows), 7, generator=changes, device=pixels.device)
        images = augment(images, ranks.mine(uniform), config.augmentation)
    if LIKELIHOODS[config.kind].binary:
        uniform = torch.rand(len(rows), *images.shape[1:], generator=noise, device=pixels.device)
        images = objective.binarise(images, ranks.mine(uniform))
    samples = (config.iwae,) if config.iwae > 1 else ()
    eps = torch.randn(len(rows), *samples, config.latent, generator=noise, device=pixels.device)
    return images, ranks.mine(eps)


def order(seed: int, epoch: int, rows: Indices) -> Indices:
    """The permutation of the rows in this epoch. The caller drops the last rows that do not fill a batch."""
    return np.random.Generator(np.random.PCG64(_mix(seed, "epoch", epoch))).permutation(rows)


def generator(device: torch.device, seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator that depends on the arguments only, so it is the same after a resume."""
    return torch.Generator(device).manual_seed(_mix(seed, purpose, number))


def _mix(seed: int, purpose: str, number: int) -> int:
    """32 well-mixed bits: torch's CPU generator uses no more, and similar seeds give similar numbers."""
    words = [seed, *purpose.encode(), number]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])
