"""The fast reader agrees with Pillow on plain files and reads nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vaeserve.bundle.images import ImageError, encode_image, read_image
from vaeserve.bundle.png import png_size, read_plain

rng = np.random.default_rng(0)


def as_png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (28, 28)])
@pytest.mark.parametrize("compress_level", [0, 1, 9])
def test_a_plain_png_is_read_as_by_pillow(channels, size, compress_level):
    smooth = np.add.outer(np.arange(size[0]) * 3, np.arange(size[1]) * 5)  # makes Pillow use every filter
    pixels = (smooth[..., None] + rng.integers(0, 9, (*size, channels))).astype(np.uint8)
    data = as_png(
        Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels), compress_level=compress_level
    )
    found = read_plain(data, *size, channels)
    assert found is not None
    np.testing.assert_array_equal(found, pixels)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


GREY = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
PLAIN = as_png(GREY)
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    "data",
    [
        as_png(GREY.resize((9, 8))),
        as_png(GREY.convert("RGB")),
        as_png(GREY.convert("LA")),
        as_png(GREY.convert("P")),
        as_png(GREY.convert("1")),
        as_png(GREY, exif=EXIF.tobytes()),
        as_png(GREY, transparency=0),
        PLAIN[:33] + chunk(b"gAMA", b"\0\0\0\1") + PLAIN[33:],
        PLAIN[:-12] + chunk(b"eXIf", EXIF.tobytes()) + PLAIN[-12:],
        PLAIN + b"more",
        PLAIN[:-1],
        PLAIN[:40],
        b"",
    ],
    ids=range(13),
)
def test_every_other_file_is_left_to_pillow(data):
    assert read_plain(data, 8, 8, 1) is None


def test_a_broken_file_is_refused():
    short = chunk(b"IDAT", zlib.compress(b"\0" * 40))
    for wrong in (
        PLAIN[:29] + b"\0\0\0\0" + PLAIN[33:],  # the header's checksum
        PLAIN[:-16] + b"\0\0\0\0" + PLAIN[-12:],  # that of the pixels
        PLAIN[:33] + short + PLAIN[-12:],  # fewer pixels than declared
        PLAIN[:33] + chunk(b"IDAT", b"no zlib stream") + PLAIN[-12:],
    ):
        assert read_plain(wrong, 8, 8, 1) is None
    with pytest.raises(ImageError):
        read_image(PLAIN[:33] + short + PLAIN[-12:], height=8, width=8, channels=1, fit="contain")


def test_the_limit_on_pixels_holds_for_the_fast_reader():
    data = encode_image(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8))
    with pytest.raises(ImageError, match="8 × 8"):
        read_image(data, height=8, width=8, channels=1, fit="contain", max_pixels=63)


def test_the_size_is_read_from_the_header():
    assert png_size(as_png(GREY.resize((9, 8)).convert("RGBA"))) == (9, 8)
    assert png_size(PLAIN[:24]) == (8, 8)
    assert png_size(PLAIN[:23]) is None
    assert png_size(b"GIF89a" + PLAIN) is None
