"""Writes images as one PNG file without an imaging library; several become a contact sheet."""

import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

GAP = 2  # pixels between the images of a contact sheet, as in the service's


def png(images: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [n, h, w, c] as a PNG file: the bare image if n = 1, else a contact sheet."""
    pixels = images[0] if len(images) == 1 else contact_sheet(images)
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter type, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def contact_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrange uint8 [n, h, w, c] in reading order on black, nearly square: uint8 [H, W, c]."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
