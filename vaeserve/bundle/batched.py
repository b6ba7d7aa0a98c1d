"""An engine on any number of images, in batches."""

from typing import Protocol

import numpy as np

from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.posterior import Posterior

CHUNK = 256  # images of a batch: large enough to be fast, small enough for any memory


class ImageSource(Protocol):
    """Images whose slices are uint8 [m, h, w, c]: an array, or part of one that is read when it is sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> ByteImages: ...


def decode(engine: Engine, latents: Floats) -> ByteImages:
    """The images, uint8 [n, h, w, c], of n latents float32 [n, *latent]."""
    starts = range(0, len(latents), CHUNK)
    return np.concatenate([engine.decode(latents[start : start + CHUNK]) for start in starts])


def encode(engine: Engine, images: ImageSource) -> Posterior:
    """The posteriors of n images: mean and logvar, float32 [n, *latent]."""
    parts = [engine.encode(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    return Posterior(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
