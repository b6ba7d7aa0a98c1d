"""Draws where an image is unusual over the image itself."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vaeserve.bundle.arrays import Floats
from vaeserve.bundle.images import Frame

Box = tuple[int, int, int, int]  # left, top, right, bottom
FROM, TO = 0.0, 6.0  # standard deviations: transparent below, opaque above
OPAQUE = 0.8
FIRST, LAST = (255, 225, 0), (225, 0, 0)  # yellow to red, on an image in grey


def overlay(
    image: NDArray[np.uint8], unusual: Floats, frame: Frame, box: Box | None = None
) -> NDArray[np.uint8]:
    """An image uint8 [H, W, 1 or 3] in grey, with `unusual` float32 [h, w] in colour; uint8 [H, W, 3].

    `frame` says where the map lies in the image. `box` is outlined.
    """
    height, width = image.shape[:2]
    high = np.clip((unusual - FROM) / (TO - FROM), 0, 1).astype(np.float32)
    x, y = frame.width / width, frame.height / height  # 1, unless the image is drawn smaller than it is
    inverse = (x / frame.right, 0, -frame.left / frame.right, 0, y / frame.down, -frame.top / frame.down)
    placed = Image.fromarray(high).transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    share = np.asarray(placed)[:, :, np.newaxis]
    colour = (1 - share) * np.array(FIRST, np.float32) + share * np.array(LAST, np.float32)
    alpha = OPAQUE * np.sqrt(share)
    drawn = (1 - alpha) * image.mean(axis=2, keepdims=True, dtype=np.float32) + alpha * colour
    picture = Image.fromarray(np.rint(drawn).astype(np.uint8))
    if box is not None:
        left, top, right, bottom = (round(at / by) for at, by in zip(box, (x, y, x, y), strict=True))
        thick = max(1, round(max(width, height) / 200))
        ImageDraw.Draw(picture).rectangle(
            (left - thick, top - thick, right + thick - 1, bottom + thick - 1), outline=LAST, width=thick
        )
    return np.asarray(picture)
