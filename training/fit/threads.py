"""The threads of a run: one for small batches of small images."""

import contextlib
import math
from collections.abc import Iterator

import torch

from training.config import TrainConfig

FEW_PIXELS = 2**15  # in a batch: below that a second thread costs more than it saves


@contextlib.contextmanager
def threads(config: TrainConfig) -> Iterator[None]:
    """Use one thread for small batches of small images: on a busy machine two took 29× the time."""
    before = torch.get_num_threads()
    if config.images_per_step * math.prod(config.image_size or ()) < FEW_PIXELS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
