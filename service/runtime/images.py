"""Image files → uint8 [h, w, c] and back. The one preprocessing path: training and serving call this.

What a person expects of a picture holds here: EXIF orientation is applied, transparency is shown on
white, 16-bit grey keeps its full range, of an animation the first frame counts.
"""

import io
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow has parsers for sixty more that nobody sends

Fit = Literal["cover", "contain", "stretch"]


class ImageError(ValueError):
    """Bytes that are no image we can read; the message says what is wrong with them."""


class TooManyPixels(ImageError):
    """An image larger than the limit, known from its header before anything was decoded."""


def read_image(
    data: bytes, *, height: int, width: int, channels: int, fit: Fit, max_pixels: int = 64_000_000
) -> NDArray[np.uint8]:
    """Decode one image file and fit it to the model's size: uint8 [height, width, channels].

    `cover` fills the frame and crops, `contain` shows everything on black, `stretch` ignores the
    aspect ratio; an image of exactly the right size is never resampled. Raises ImageError, and
    TooManyPixels from the header alone.
    """
    image = _open(data, max_pixels)
    try:
        # JPEG can decode at a fraction of its size; twice the model's keeps the resampling exact enough.
        image.draft(None, (2 * max(height, width),) * 2)
        image = ImageOps.exif_transpose(image)
        image = _fit(_to_mode(image, "L" if channels == 1 else "RGB"), (width, height), fit)
    except Exception as error:  # a broken file makes Pillow's parsers raise nearly anything
        raise ImageError(f"the image is broken or truncated ({_reason(error)})") from error
    return np.asarray(image).reshape(height, width, channels)


def image_size(data: bytes, *, max_pixels: int = 64_000_000) -> tuple[int, int, int]:
    """(height, width, channels) of an image file from its header, as a person sees it; channels 1 or 3."""
    image = _open(data, max_pixels)
    try:
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5-8 lie on their side
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L") or (
            image.mode in ("P", "PA") and _is_grey(image)
        )
    except Exception as error:  # as in read_image
        raise ImageError(f"the image is broken or truncated ({_reason(error)})") from error
    width, height = image.size[::-1] if turned else image.size
    return height, width, 1 if grey else 3


def contact_sheet(
    images: NDArray[np.uint8], *, columns: int | None = None, gap: int = 2
) -> NDArray[np.uint8]:
    """Lay uint8 [n, h, w, c] out as one image in reading order, as square as it gets; uint8 [H, W, c]."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def encode_image(pixels: NDArray[np.uint8], format: Literal["png", "jpeg"] = "png") -> bytes:
    """uint8 [h, w, c] → the bytes of an image file."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    if format == "png":
        image.save(file, "PNG", compress_level=1)  # level 6 takes twice the time to save an eighth
    else:
        image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the image has more than the {max_pixels:,} pixels allowed") from error
    except Exception as error:  # as in read_image
        raise ImageError(
            f"the bytes are no image that can be read ({_reason(error)}); send {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the image has {width} × {height} pixels, more than the {max_pixels:,} allowed; send it smaller"
        )
    return image


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(np.clip(wide / 257.0, 0, 255)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _fit(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    if image.size == size:
        return image
    method = Image.Resampling.BICUBIC
    match fit:
        case "stretch":
            return image.resize(size, method)
        case "cover":
            return ImageOps.fit(image, size, method)
        case "contain":
            scale = min(size[0] / image.width, size[1] / image.height)
            inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            frame = Image.new(image.mode, size)
            frame.paste(image.resize(inner, method), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
            return frame


def _is_grey(image: Image.Image) -> bool:
    colours = image.convert("RGB").getcolors(256) or []
    return all(red == green == blue for _, (red, green, blue) in colours)  # type: ignore[misc]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "BytesIO" in text or not text:  # Pillow names the buffer's address, which helps nobody
        return "unknown format"
    return text[:120]
