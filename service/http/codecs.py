"""Bodies → arrays and arrays → bodies: one table for each direction, one row for each media type.

Readers give `uint8 [n, h, w, c]` or `float32 [n, *latent]`, ready for the model. Image files of any size are
fitted to it; arrays must have its size. Nothing here knows routes or models beyond their manifest.
"""

import base64
import binascii
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from service.core.problems import BadImage, InvalidRequest, Pointer, TooLarge, WrongShape
from service.http.negotiation import BMP, GIF, JPEG, JSON, MULTIPART, NPY, NPZ, PNG, WEBP
from service.http.npy import read_npy
from vaeserve.bundle.images import (
    FORMATS,
    ImageError,
    TooManyPixels,
    contact_sheet,
    encode_animation,
    encode_image,
    read_image,
)
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.png import png_size

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]  # [n, *latent]


@dataclass(frozen=True)
class Budget:
    """How much the body of one request may hold. `all_pixels` is of all its image files together."""

    images: int
    pixels: int
    all_pixels: int


# --- in ---------------------------------------------------------------------------------------------------


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
    shape = _image_shape(manifest)
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
    shape = _image_shape(manifest)
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


# From a body, or from the field of a JSON body or a form that holds the data, to rows for the model.
Reader = Callable[[Any, Manifest, Budget], NDArray[Any]]

IMAGE_READERS: dict[str, Reader] = {
    JSON: images_from_list,
    PNG: images_from_file,
    JPEG: images_from_file,
    WEBP: images_from_file,
    GIF: images_from_file,
    BMP: images_from_file,
    MULTIPART: images_from_form,
    NPY: images_from_npy,
}
LATENT_READERS: dict[str, Reader] = {
    JSON: latents_from_list,
    NPY: latents_from_npy,
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
        raise  # whoever set the budget decides what that means
    except ImageError as error:
        raise BadImage(_at(pointer, str(error)), errors=_pointers(pointer, str(error))) from None


def _less(left: int, data: bytes, budget: Budget) -> int:
    """How many pixels the other files of a request may have after this one."""
    try:
        width, height = png_size(data) or Image.open(io.BytesIO(data), formats=FORMATS).size
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


def _image_shape(manifest: Manifest) -> tuple[int, ...]:
    return manifest.image.shape


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


# --- out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a route found out: arrays by their name in JSON, the main one first; images are uint8.

    `fields` are for JSON alone. As a picture the images of the array `picture` are shown, several of them in
    `columns` (None: as square as it gets) with a `gap`, or one after the other for `duration` milliseconds.
    """

    model: str
    arrays: dict[str, NDArray[Any]]
    seed: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    picture: str = "images"
    columns: int | None = None
    gap: int = 2
    duration: int = 80

    @property
    def images(self) -> ByteImages:
        return self.arrays[self.picture]

    @property
    def values(self) -> int:
        """How many numbers must be written, a measure of the time that takes."""
        return sum(array.size for array in self.arrays.values())


def as_json(answer: Answer) -> bytes:
    fields: dict[str, Any] = {"model": answer.model}
    for name, array in answer.arrays.items():
        if _is_images(array):
            fields[name] = [base64.b64encode(encode_image(image)).decode() for image in array]
        else:
            fields[name] = np.ascontiguousarray(array)
    fields |= answer.fields
    if answer.seed is not None:
        fields["seed"] = answer.seed
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def as_npy(answer: Answer) -> bytes:
    file = io.BytesIO()
    np.save(file, next(iter(answer.arrays.values())), allow_pickle=False)
    return file.getvalue()


def as_npz(answer: Answer) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **answer.arrays)
    return file.getvalue()


def as_png(answer: Answer) -> bytes:
    return encode_image(_one_image(answer), "png")


def as_jpeg(answer: Answer) -> bytes:
    return encode_image(_one_image(answer), "jpeg")


def as_gif(answer: Answer) -> bytes:
    return encode_animation(answer.images, "gif", answer.duration)


def as_webp(answer: Answer) -> bytes:
    return encode_animation(answer.images, "webp", answer.duration)


def _one_image(answer: Answer) -> NDArray[np.uint8]:
    """The bare image, so that it can be posted back as it is; several as a contact sheet."""
    images = answer.images
    if len(images) == 1:
        only: NDArray[np.uint8] = images[0]
        return only
    return contact_sheet(images, columns=answer.columns, gap=answer.gap)


def _is_images(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4


Writer = Callable[[Answer], bytes]

# In the order of our preference: what `Accept: */*` gets is the first.
ARRAY_WRITERS: dict[str, Writer] = {JSON: as_json, NPY: as_npy, NPZ: as_npz}
WRITERS: dict[str, Writer] = ARRAY_WRITERS | {PNG: as_png, JPEG: as_jpeg}  # for answers with images
ANIMATION_WRITERS: dict[str, Writer] = WRITERS | {GIF: as_gif, WEBP: as_webp}


def warm_up(manifest: Manifest) -> None:
    """Do everything once: Pillow imports its parsers when they are needed first, which takes 200 ms."""
    Image.init()
    image = np.zeros((1, *_image_shape(manifest)), np.uint8)
    for writer in WRITERS.values():
        writer(Answer(manifest.reference, {"images": image}))
    _read(encode_image(image[0]), manifest, image.size, "")
