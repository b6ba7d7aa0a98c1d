"""Places of images that are unusual, and pictures of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vaeserve.bundle.arrays import ByteImages, Doubles, Floats
from vaeserve.bundle.images import Frame, image_size, read_image
from vaeserve.bundle.local_error import UsualError, region
from vaeserve.bundle.manifest import ImageSpec
from vaeserve.bundle.overlay import Box, overlay

DRAWN = 1 << 22  # pixels; a larger original is drawn smaller


class Places(NamedTuple):
    """What is unusual in n images, float32 [n, h, w] in standard deviations, and the most unusual places.

    The boxes are in pixels of the originals, in which the images lie as `frames` say.
    """

    map: Floats
    frames: Sequence[Frame]
    boxes: Sequence[Box]

    @property
    def local(self) -> Doubles:
        """The local score of each image, float64 [n]."""
        local: Doubles = self.map.max(axis=(1, 2)).astype(np.float64)
        return local

    def overlays(self, images: ByteImages) -> ByteImages:
        """What is unusual in colour over the images, as large as the model takes them; uint8 [n, h, w, 3]."""
        size = images.shape[1], images.shape[2]
        itself = Frame.of(size, size, "stretch")
        return np.stack([overlay(image, each, itself) for image, each in zip(images, self.map, strict=True)])

    @property
    def large_pixels(self) -> int:
        """How many pixels `large_overlay` draws."""
        return min(self.frames[0].pixels, DRAWN)

    def large_overlay(self, file: bytes, outlined: bool) -> ByteImages:
        """The same over the first image, as large as it is in its file; uint8 [1, H, W, 3]."""
        frame = self.frames[0]
        shrunk = max(1.0, math.sqrt(frame.pixels / DRAWN))
        height, width = (max(1, round(side / shrunk)) for side in (frame.height, frame.width))
        most = 4 * frame.pixels  # it was read before, so it is within the limits
        image = read_image(file, height=height, width=width, channels=3, fit="stretch", max_pixels=most)
        return overlay(image, self.map[0], frame, self.boxes[0] if outlined else None)[np.newaxis]


def find_places(
    usual: UsualError,
    spec: ImageSpec,
    images: ByteImages,
    reconstructions: ByteImages,
    files: Sequence[bytes | None],
) -> Places:
    """Compare errors with the usual ones. `files`: those that the images came from, None or missing for
    arrays."""
    found, fitted = usual.map(images, reconstructions), (spec.height, spec.width)
    frames = [
        Frame.of(_size(file) if file else fitted, fitted, spec.fit) for file in files or [None] * len(images)
    ]
    boxes = [frame.box(*region(each)) for frame, each in zip(frames, found, strict=True)]
    return Places(found, frames, boxes)


def _size(file: bytes) -> tuple[int, int]:
    """(height, width) of an image file that was read before, so that it is within the limits."""
    height, width, _ = image_size(file, max_pixels=1 << 62)
    return height, width
