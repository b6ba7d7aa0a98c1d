"""Converts image files to uint8 [h, w, c] and back, for training and for serving.

EXIF orientation is applied, transparency is shown on white, 16-bit grey keeps its full range, and an
animation is reduced to its first frame. A large image takes little more memory than Pillow needs to decode
it, because it is converted and shrunk in strips.
"""

import io
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vaeserve.bundle.manifest import Fit
from vaeserve.bundle.png import read_plain


class Format(NamedTuple):
    """An image format, as HTTP and as file systems name it."""

    media_type: str
    suffixes: tuple[str, ...]


# The formats that are read, by Pillow's names. Each of Pillow's sixty other parsers would be an attack
# surface.
FORMATS = {
    "PNG": Format("image/png", (".png",)),
    "JPEG": Format("image/jpeg", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "WEBP": Format("image/webp", (".webp",)),
    "GIF": Format("image/gif", (".gif",)),
    "BMP": Format("image/bmp", (".bmp",)),
}

# The largest side of a JPEG. Pillow keeps a pointer for every row, so an image of one column would take
# three times the memory of its pixels.
MAX_SIDE = 65_535

# Up to this many pixels an image is converted at once and resampled from all of them. A larger one is
# converted in strips of this size, each first shrunk by a whole factor, to at least twice the model's size.
STRIP = 1 << 20

# Bytes. Pillow decodes run-length encoded BMP in Python, at 3 MB a second.
MAX_RUN_LENGTH = 1 << 20

# WebP decodes into three canvases and a copy: 17 bytes a pixel where other formats take 4 to 8.
COST = {"WEBP": 2}

ORIENTATION = 0x0112  # the EXIF tag
# Orientation → the transposition that turns the image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Bytes that are not a readable image. The message says what is wrong with them."""


class TooManyPixels(ImageError):
    """An image above the limit, recognised from its header without decoding it."""


def read_image(
    data: bytes, *, height: int, width: int, channels: int, fit: Fit, max_pixels: int = 64_000_000
) -> NDArray[np.uint8]:
    """Decode one image file and fit it to the model's size: uint8 [height, width, channels].

    `cover` fills the frame and crops, `contain` shows everything on black, `stretch` ignores the aspect
    ratio. An image of exactly the right size is never resampled. Raises ImageError, and TooManyPixels from
    the header alone.
    """
    if height * width <= max_pixels and (plain := read_plain(data, height, width, channels)) is not None:
        return plain
    image = _open(data, max_pixels)
    try:
        # JPEG can decode at a fraction of its size; twice the model's size keeps the resampling accurate.
        enough = 2 * max(height, width)
        image.draft(None, (enough, enough))
        image.load()
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        image = _converted(image, "L" if channels == 1 else "RGB", enough)
        image = image if turn is None else image.transpose(turn)
        image = _fit(image, (width, height), fit)
    except Exception as error:  # a broken file makes Pillow's parsers raise nearly anything
        raise ImageError(f"the image is broken or truncated ({_reason(error)})") from error
    # Twice as fast as np.asarray, which goes through __array_interface__.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)


def image_size(data: bytes, *, max_pixels: int = 64_000_000) -> tuple[int, int, int]:
    """(height, width, channels) of an image file after orientation, from its header; channels 1 or 3."""
    image = _open(data, max_pixels)
    try:
        # Only what precedes a PNG's pixels: to look further, Pillow would decode them all.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(ORIENTATION, 1) in (5, 6, 7, 8)  # turned by 90°
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L") or (
            image.mode in ("P", "PA") and _is_grey(image)
        )
    except Exception as error:  # as in read_image
        raise ImageError(f"the image is broken or truncated ({_reason(error)})") from error
    width, height = image.size[::-1] if turned else image.size
    return height, width, 1 if grey else 3


def fit_array(
    pixels: NDArray[np.uint8], *, height: int, width: int, channels: int, fit: Fit
) -> NDArray[np.uint8]:
    """Fit uint8 [h, w, 1 or 3] to a model's size as `read_image` does: uint8 [height, width, channels]."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image = _fit(_to_mode(image, "L" if channels == 1 else "RGB"), (width, height), fit)
    return np.asarray(image).reshape(height, width, channels)


class Frame(NamedTuple):
    """Where a fitted image lies in its original of `height` × `width` pixels.

    The pixel (y, x) of the fitted image begins at top + y · down, left + x · right of the original.
    """

    height: int
    width: int
    top: float
    left: float
    down: float
    right: float

    @property
    def pixels(self) -> int:
        """How many pixels the original has."""
        return self.height * self.width

    @classmethod
    def of(cls, original: tuple[int, int], fitted: tuple[int, int], fit: Fit) -> "Frame":
        """For an original and a fitted image of (height, width) pixels."""
        sides = list(zip(original, fitted, strict=True))
        if fit == "stretch" or original == fitted:
            shown = [float(side) for side, _ in sides]
        elif fit == "contain":
            scale = min(to / side for side, to in sides)
            shown = [side * to / max(1, round(side * scale)) for side, to in sides]
        else:
            scale = max(to / side for side, to in sides)
            shown = [to / scale for _, to in sides]
        top, left = ((side - all_of_it) / 2 for side, all_of_it in zip(original, shown, strict=True))
        down, right = (all_of_it / to for all_of_it, to in zip(shown, fitted, strict=True))
        return cls(*original, top, left, down, right)

    def box(self, top: int, left: int, bottom: int, right: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in the original of a region of the fitted image, at least one pixel.

        Right and bottom are exclusive.
        """
        x0, x1 = _span(self.left + left * self.right, self.left + right * self.right, self.width)
        y0, y1 = _span(self.top + top * self.down, self.top + bottom * self.down, self.height)
        return x0, y0, x1, y1


def contact_sheet(
    images: NDArray[np.uint8], *, columns: int | None = None, gap: int = 2
) -> NDArray[np.uint8]:
    """Lay out uint8 [n, h, w, c] as one image in reading order, nearly square; uint8 [H, W, c]."""
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
    """Encode uint8 [h, w, c] as an image file."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    if format == "png":
        image.save(file, "PNG", compress_level=1)  # level 6 takes twice the time and saves an eighth
    else:
        image.save(file, "JPEG", quality=90)
    return file.getvalue()


def encode_animation(images: NDArray[np.uint8], format: Literal["gif", "webp"], duration: int) -> bytes:
    """Encode uint8 [n, h, w, c] as an endless animation of `duration` milliseconds a frame."""
    frames = [Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels) for pixels in images]
    file = io.BytesIO()
    first, *others = frames
    first.save(
        file,
        format.upper(),
        save_all=True,
        append_images=others,
        duration=duration,
        loop=0,
        lossless=True,  # WebP: lossy compression saves nothing on small images
    )
    return file.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the image has more than the {max_pixels:,} pixels allowed") from error
    except Exception as error:  # as in read_image
        raise ImageError(unreadable(_reason(error))) from error
    width, height = image.size
    allowed = max_pixels // COST.get(image.format or "", 1)
    if width * height > allowed or max(width, height) > MAX_SIDE:
        raise TooManyPixels(
            f"the image has {width} × {height} pixels; a {image.format} file may have {allowed:,} here and "
            f"{MAX_SIDE:,} a side: send a smaller one"
        )
    if len(data) > MAX_RUN_LENGTH and any(tile[0] == "bmp_rle" for tile in image.tile):
        raise ImageError("a BMP with run-length encoding takes too long to decode; send it as PNG")
    return image


def _converted(image: Image.Image, mode: Literal["L", "RGB"], enough: int) -> Image.Image:
    """The image in `mode`; a large one is also shrunk by a factor that leaves both sides `enough`."""
    if image.width * image.height <= STRIP:
        return _to_mode(image, mode)
    factor = max(1, min(image.size) // enough)
    rows = max(1, STRIP // image.width // factor) * factor
    shrunk = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = _to_mode(image.crop((0, top, image.width, min(top + rows, image.height))), mode)
        shrunk.paste(strip.reduce(factor), (0, top // factor))
    return shrunk


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # rounded
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


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    first = min(max(round(low), 0), side - 1)
    return first, min(max(round(high), first + 1), side)


def unreadable(reason: str) -> str:
    """The message for bytes that no format reads."""
    return f"the bytes are not a readable image ({reason}); send {', '.join(FORMATS)}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "BytesIO" in text or not text:  # Pillow prints the address of the buffer
        return "unknown format"
    return text[:120]
