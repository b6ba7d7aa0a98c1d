"""Bodies as arrays: one table for each kind of input, one row for each media type.

Readers return uint8 [n, h, w, c] or float32 [n, *latent], ready for the model. Image files of any size are
fitted to the model's size; arrays must have it. Readers know nothing of models beyond their manifest.
"""

import binascii
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core.problems import BadImage, InvalidRequest, Pointer, TooLarge, WrongShape
from service.core.service import Budget
from service.http.negotiation import IMAGE_TYPES, JSON, MULTIPART, NPY
from service.http.npy import read_npy
from service.operations.fields import ImagesBody, LatentsBody, PointsBody
from service.operations.operation import Inputs
from service.operations.points import Points
from vaeserve.bundle.arrays import ByteImages, Floats
from vaeserve.bundle.images import FORMATS, ImageError, TooManyPixels, read_image
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.png import png_size

# From a body, a parsed JSON body or the files of a form to the inputs of an operation.
Reader = Callable[[Any, Manifest, Budget], Any]


def images_from_file(data: bytes, manifest: Manifest, budget: Budget) -> ByteImages:
    """One image file."""
    return _read(data, manifest, budget.pixels, "")[np.newaxis]


def images_from_form(files: list[bytes], manifest: Manifest, budget: Budget) -> ByteImages:
    """The `images` of a form: several image files."""
    if not files:
        raise InvalidRequest("The form has no field `images`; with curl: -F images=@a.png -F images=@b.png.")
    _check_count(len(files), budget, "images")
    left = budget.all_pixels
    rows = []
    for index, data in enumerate(files):
        left = _less(left, data, budget)
        rows.append(_read(data, manifest, budget.pixels, f"/images/{index}"))
    return np.stack(rows)


def images_from_list(items: list[str | list[Any]], manifest: Manifest, budget: Budget) -> ByteImages:
    """The `images` of a JSON body: files in base64, nested lists of pixels, or both."""
    _check_count(len(items), budget, "images")
    shape = manifest.image.shape
    left = budget.all_pixels
    rows = []
    for index, item in enumerate(items):
        pointer = f"/images/{index}"
        if isinstance(item, str):
            data = _from_base64(item, pointer)
            left = _less(left, data, budget)
            rows.append(_read(data, manifest, budget.pixels, pointer))
        else:
            image = _rectangular(item, np.uint8, pointer)
            if image.ndim == 2 and shape[2] == 1:
                image = image[..., np.newaxis]
            if image.shape != shape:
                detail = f"is {_shape(image.shape)}; {manifest.reference} takes {_shape(shape)}"
                raise _wrong_shape(f"{detail}, and only image files are resized", pointer)
            rows.append(image)
    return np.stack(rows)


def images_from_npy(data: bytes, manifest: Manifest, budget: Budget) -> ByteImages:
    """uint8 [n, h, w, c], or [n, h, w] where the model has one channel."""
    array = read_npy(data, np.dtype(np.uint8))
    shape = manifest.image.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., np.newaxis]
    _check_rows(array, shape, budget, manifest, "images")
    return array


def latents_from_list(items: list[Any], manifest: Manifest, budget: Budget) -> Floats:
    """The `latents` of a JSON body."""
    _check_count(len(items), budget, "latents")
    shape = manifest.latent.shape
    rows = []
    for index, item in enumerate(items):
        row = _rectangular(item, np.float32, pointer := f"/latents/{index}")
        if row.shape != shape:
            raise _wrong_shape(f"is {_shape(row.shape)}; {manifest.reference} takes {_shape(shape)}", pointer)
        rows.append(row)
    return _finite(np.stack(rows))


def latents_from_npy(data: bytes, manifest: Manifest, budget: Budget) -> Floats:
    """float32 [n, *latent]."""
    array = read_npy(data, np.dtype(np.float32))
    _check_rows(array, manifest.latent.shape, budget, manifest, "latents")
    return _finite(array)


def points_from_npy(data: bytes, manifest: Manifest, budget: Budget) -> Points:
    """uint8 are images, float32 are latents."""
    if read_npy(data, np.dtype(np.uint8), np.dtype(np.float32)).dtype == np.uint8:
        return Points(images_from_npy(data, manifest, budget), None)
    return Points(None, latents_from_npy(data, manifest, budget))


def points_from_json(body: PointsBody, manifest: Manifest, budget: Budget) -> Points:
    """The `images` and `latents` of a JSON body."""
    if (count := len(body.images) + len(body.latents)) > budget.images:
        raise TooLarge(f"{count:,} points are more than the {budget.images:,} of one request; send several.")
    return Points(
        images_from_list(body.images, manifest, budget) if body.images else None,
        latents_from_list(body.latents, manifest, budget) if body.latents else None,
    )


def files(media_type: str, source: Any) -> list[bytes | None]:
    """The image files of a body of images that was read, in their order; None for an array among them."""
    if media_type in IMAGE_TYPES:
        return [source]
    if media_type == MULTIPART:
        return list(source)
    if media_type == JSON:
        return [_from_base64(item, "") if isinstance(item, str) else None for item in source.images]
    return []


def _images_from_json(body: ImagesBody, manifest: Manifest, budget: Budget) -> ByteImages:
    return images_from_list(body.images, manifest, budget)


def _latents_from_json(body: LatentsBody, manifest: Manifest, budget: Budget) -> Floats:
    return latents_from_list(body.latents, manifest, budget)


def _points(reader: Callable[[Any, Manifest, Budget], ByteImages]) -> Reader:
    """A reader of images as one of points."""
    return lambda data, manifest, budget: Points(reader(data, manifest, budget), None)


_POINTS: dict[str, Reader] = {
    JSON: points_from_json,
    MULTIPART: _points(images_from_form),
    NPY: points_from_npy,
}
READERS: dict[Inputs, dict[str, Reader]] = {
    Inputs.NOTHING: {JSON: lambda body, manifest, budget: None},
    Inputs.IMAGES: {
        JSON: _images_from_json,
        **dict.fromkeys(IMAGE_TYPES, images_from_file),
        MULTIPART: images_from_form,
        NPY: images_from_npy,
    },
    Inputs.LATENTS: {JSON: _latents_from_json, NPY: latents_from_npy},
    Inputs.POINT: _POINTS | dict.fromkeys(IMAGE_TYPES, _points(images_from_file)),
    Inputs.POINTS: _POINTS,
}


def _read(data: bytes, manifest: Manifest, max_pixels: int, pointer: str) -> NDArray[np.uint8]:
    spec = manifest.image
    try:
        return read_image(
            data,
            height=spec.height,
            width=spec.width,
            channels=spec.channels,
            fit=spec.fit,
            max_pixels=max_pixels,
        )
    except TooManyPixels:
        raise  # the caller that set the budget handles it
    except ImageError as error:
        raise BadImage(_at(pointer, str(error)), errors=_pointers(pointer, str(error))) from None


def _less(left: int, data: bytes, budget: Budget) -> int:
    """How many pixels the other files of a request may have after this one."""
    try:
        width, height = png_size(data) or Image.open(io.BytesIO(data), formats=tuple(FORMATS)).size
    except Exception:  # Pillow's parsers raise nearly anything; reading the file will tell what is wrong
        return left
    if width * height > left:
        raise TooManyPixels(
            f"the images of this request have more than {budget.all_pixels:,} pixels together; "
            "send them in several requests, or smaller"
        )
    return left - width * height


def _from_base64(text: str, pointer: str) -> bytes:
    if text.startswith("data:"):  # what a browser's FileReader gives
        text = text.partition(",")[2]
    try:
        # `base64` on the command line wraps its lines.
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:
        detail = f"is not base64 ({error}); send the bytes of an image file in base64"
        raise InvalidRequest(_at(pointer, detail), errors=_pointers(pointer, detail)) from None


def _rectangular(rows: list[Any], dtype: type[np.generic], pointer: str) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused as that
            return np.array(rows, dtype)
    except ValueError:
        raise _wrong_shape("has lists of different lengths", pointer) from None


def _check_count(count: int, budget: Budget, what: str) -> None:
    if not count:
        raise InvalidRequest(
            f"There are no {what}; send at least one.", errors=_pointers(f"/{what}", "is empty")
        )
    if count > budget.images:
        raise TooLarge(f"{count:,} {what} are more than the {budget.images:,} of one request; send several.")


def _check_rows(
    array: NDArray[Any], shape: tuple[int, ...], budget: Budget, manifest: Manifest, what: str
) -> None:
    if array.ndim == 0 or array.shape[1:] != shape:
        raise WrongShape(
            f"The array is {_shape(array.shape)}; {manifest.reference} takes {what} {_shape(('n', *shape))}. "
            "Arrays are never resized; image files are."
        )
    _check_count(len(array), budget, what)


def _finite(latents: Floats) -> Floats:
    bad = ~np.isfinite(latents.reshape(len(latents), -1)).all(axis=1)
    if bad.any():
        pointer, detail = f"/latents/{bad.argmax()}", "has values that are not finite as float32"
        raise InvalidRequest(_at(pointer, detail), errors=_pointers(pointer, detail))
    return latents


def _wrong_shape(detail: str, pointer: str) -> WrongShape:
    return WrongShape(_at(pointer, detail), errors=_pointers(pointer, detail))


def _shape(shape: Iterable[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _at(pointer: str, detail: str) -> str:
    return f"{pointer} {detail}." if pointer else f"{detail[:1].upper()}{detail[1:]}."


def _pointers(pointer: str, detail: str) -> list[Pointer]:
    return [Pointer(pointer=pointer, location="body", detail=detail)] if pointer else []
