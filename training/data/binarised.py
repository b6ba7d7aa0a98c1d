"""Images as a model sees them: a Bernoulli's are black and white, so grey ones are drawn once."""

import dataclasses

import numpy as np

from training.data.images import ByteImages, Images, Indices, Subset
from vaeserve.bundle.batched import ImageSource
from vaeserve.bundle.noise import noise


@dataclasses.dataclass(frozen=True, eq=False)
class Binarised:
    """Grey images with every pixel drawn once, x ~ Bernoulli(pixel): 0 or 255, the same for the same seed."""

    images: ImageSource
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> ByteImages:
        # Uniforms by way of the normals that are stable for ever: Φ is monotone, so compare on their scale.
        from scipy.special import ndtri

        start, stop, _ = part.indices(len(self))
        grey = self.images[start:stop]
        drawn = np.empty_like(grey)
        for row, image in enumerate(grey):  # row by row: the noise of all would be eight times the images
            eps = noise(self.seed, range(start + row, start + row + 1), image.shape)[0]
            drawn[row] = np.where(eps < ndtri(image / 255.0), 255, 0)
        return drawn


def model_inputs(likelihood: str | None, data: Images, rows: Indices, seed: int) -> ImageSource:
    """These rows of the data; where the likelihood is a Bernoulli and the data are grey, binarised."""
    images = Subset(data.pixels, rows)
    return Binarised(images, seed) if likelihood == "bernoulli" and not data.binary else images
