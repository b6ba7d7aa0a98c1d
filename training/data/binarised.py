"""The images that a model is trained and evaluated on, binarised for a likelihood of binary pixels."""

import dataclasses

import numpy as np

from training.data.images import ByteImages, Images, Indices, Subset
from vaeserve.bundle.batched import ImageSource
from vaeserve.bundle.likelihood import LIKELIHOODS
from vaeserve.bundle.noise import noise


@dataclasses.dataclass(frozen=True, eq=False)
class Binarised:
    """Grey images binarised once, x ~ Bernoulli(pixel): 0 or 255, determined by the seed."""

    images: ImageSource
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> ByteImages:
        # `noise` draws normals, not uniforms. Φ is monotone, so pixels are compared on the normal scale.
        from scipy.special import ndtri

        start, stop, _ = part.indices(len(self))
        grey = self.images[start:stop]
        drawn = np.empty_like(grey)
        for row, image in enumerate(grey):  # row by row: the noise needs eight times the memory of an image
            eps = noise(self.seed, range(start + row, start + row + 1), image.shape)[0]
            drawn[row] = np.where(eps < ndtri(image / 255.0), 255, 0)
        return drawn


def model_inputs(likelihood: str | None, data: Images, rows: Indices, seed: int) -> ImageSource:
    """These rows of the data, binarised if the likelihood is of binary pixels and the data are grey."""
    images = Subset(data.pixels, rows)
    binary = likelihood is not None and LIKELIHOODS[likelihood].binary
    return Binarised(images, seed) if binary and not data.binary else images
