"""Image files of every kind are decoded, fitted and refused as documented."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from vaeserve.bundle import images
from vaeserve.bundle.images import (
    ImageError,
    TooManyPixels,
    contact_sheet,
    encode_image,
    image_size,
    read_image,
)

rng = np.random.default_rng(0)


def as_file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(
    data: bytes, height: int = 8, width: int = 8, channels: int = 1, fit: str = "contain", **limits: int
):
    return read_image(data, height=height, width=width, channels=channels, fit=fit, **limits)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_is_exact(channels):
    pixels = rng.integers(0, 256, (9, 5, channels), dtype=np.uint8)
    np.testing.assert_array_equal(read(encode_image(pixels), 9, 5, channels), pixels)


def test_a_grey_image_saved_as_colour_is_read_exactly():
    pixels = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    colour = as_file(Image.fromarray(pixels[:, :, 0]).convert("RGB"))
    np.testing.assert_array_equal(read(colour), pixels)


def test_sixteen_bit_grey_keeps_its_range():
    wide = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    pixels = read(as_file(Image.fromarray(wide)))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(wide / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    data = as_file(image.convert(mode)) if mode != "P" else as_file(image, "GIF")
    pixels = read(data)
    assert pixels[:, 4:].min() >= 254
    assert pixels[:, :4].max() <= 12


def test_exif_orientation_is_applied():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255  # a white first row
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right edge
    turned = read(as_file(Image.fromarray(pixels), "PNG", exif=exif))
    assert turned[:, 7, 0].min() == 255
    assert turned[:, :7, 0].max() == 0


def test_a_cmyk_jpeg_keeps_its_colour():
    data = as_file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = read(data, channels=3).mean(axis=(0, 1))
    assert red > 200
    assert max(green, blue) < 60


def test_an_animation_is_reduced_to_its_first_frame():
    frames = [Image.new("L", (8, 8), value) for value in (200, 50)]
    data = as_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read(data).min() >= 198


def test_fit_crops_pads_or_stretches():
    data = as_file(Image.fromarray(np.full((4, 16), 255, np.uint8)))
    assert (read(data, fit="cover") == 255).all()
    assert (read(data, fit="stretch") == 255).all()
    contained = read(data, fit="contain")[:, :, 0]
    assert (contained[3:5] == 255).all()
    assert contained[:3].max() == contained[5:].max() == 0
    assert read(as_file(Image.new("L", (4000, 1), 255))).max() > 0  # a line is not lost altogether


def test_a_large_jpeg_is_decoded_at_a_fraction_without_visible_change():
    ramp = np.tile(np.linspace(0, 255, 2048).astype(np.uint8), (2048, 1))
    pixels = read(as_file(Image.fromarray(ramp), "JPEG", quality=95), 32, 32)
    np.testing.assert_allclose(pixels[:, :, 0].mean(axis=0), np.linspace(4, 251, 32), atol=2)


def test_too_many_pixels_are_refused_from_the_header():
    data = as_file(Image.new("L", (300, 300)))
    with pytest.raises(TooManyPixels, match="300 × 300"):
        read(data, max_pixels=80_000)
    header = bytearray(data)
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # the size in IHDR
    with pytest.raises(ImageError):
        read(bytes(header))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_broken_files_are_image_errors(format):
    noise = Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    data = as_file(noise, format)
    with pytest.raises(ImageError, match=r"broken or truncated|not a readable image"):
        read(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"II*\0" + bytes(100)])
def test_errors_for_other_bytes_show_no_memory_address(data):
    with pytest.raises(ImageError) as caught:
        read(data)
    assert "0x" not in str(caught.value)
    assert "PNG" in str(caught.value)


def test_contact_sheet_lays_images_out_in_reading_order():
    images = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30)])
    sheet = contact_sheet(images, gap=1)
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 1)
    assert (sheet[1, 1], sheet[1, 5], sheet[4, 1], sheet[4, 5]) == (10, 20, 30, 0)


def test_image_size_respects_orientation_and_colour():
    grey = Image.new("L", (6, 4))
    assert image_size(as_file(grey)) == (4, 6, 1)
    assert image_size(as_file(grey.convert("P"))) == (4, 6, 1)
    exif = Image.Exif()
    exif[0x0112] = 8
    assert image_size(as_file(grey.convert("RGB"), "JPEG", exif=exif)) == (6, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_converting_in_strips_changes_nothing(mode, channels, monkeypatch):
    pixels = rng.integers(0, 256, (61, 37, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode != "I;16" else None
    if image is None:
        image = Image.fromarray(rng.integers(0, 65536, (61, 37)).astype(np.uint16))
    elif mode != "RGBA":
        image = (image if mode == "LA" else image.convert("RGB")).convert(mode)
    data = as_file(image, "JPEG" if mode == "CMYK" else "PNG")
    whole = read(data, 61, 37, channels)
    monkeypatch.setattr(images, "STRIP", 100)
    np.testing.assert_array_equal(read(data, 61, 37, channels), whole)
    # Shrinking first gives nearly the same: it keeps the mean of each region.
    small = read(data, 8, 8, channels, "stretch")
    monkeypatch.setattr(images, "STRIP", 1 << 20)
    difference = np.abs(small.astype(int) - read(data, 8, 8, channels, "stretch"))
    assert difference.mean() < 6


def test_a_side_may_not_be_longer_than_in_a_jpeg():
    with pytest.raises(TooManyPixels, match="65,535 a side"):
        read(as_file(Image.new("L", (1, 65_536))))
    assert read(as_file(Image.new("L", (1, 65_535), 255))).max() > 0


def test_webp_may_have_half_as_many_pixels():
    data = as_file(Image.new("L", (100, 100)), "WEBP")
    read(data, max_pixels=20_000)
    with pytest.raises(TooManyPixels, match="a WEBP file may have 9,999 here"):
        read(data, max_pixels=19_999)


def test_large_run_length_encoded_bitmaps_are_refused():
    def bitmap(side, runs):
        offset = 14 + 40 + 1024
        head = b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
        info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
        return head + info + bytes(1024) + runs

    assert read(bitmap(8, b"\x08\x05\0\0" * 8 + b"\0\1")).shape == (8, 8, 1)
    with pytest.raises(ImageError, match="run-length encoding takes too long"):
        read(bitmap(2048, b"\x01\x05" * (1 << 20)))
