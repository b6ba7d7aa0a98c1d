"""Answers as bytes: one table, one row for each media type."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from service.http.negotiation import GIF, JPEG, JSON, NPY, NPZ, PNG, WEBP
from service.operations.answer import Answer
from service.operations.operation import Outputs
from vaeserve.bundle.images import contact_sheet, encode_animation, encode_image, read_image
from vaeserve.bundle.manifest import Manifest

# The answer, and `name@version` of the model that gave it.
Writer = Callable[[Answer, str], bytes]


def as_json(answer: Answer, model: str) -> bytes:
    """All arrays by name, images as PNG files in base64."""
    fields: dict[str, Any] = {"model": model}
    for name, array in answer.arrays.items():
        if array.dtype == np.uint8 and array.ndim == 4:
            fields[name] = [base64.b64encode(encode_image(image)).decode() for image in array]
        else:
            fields[name] = np.ascontiguousarray(array)
    fields |= answer.fields
    if answer.seed is not None:
        fields["seed"] = answer.seed
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def as_npy(answer: Answer, model: str) -> bytes:
    """The main array."""
    file = io.BytesIO()
    np.save(file, next(iter(answer.arrays.values())), allow_pickle=False)
    return file.getvalue()


def as_npz(answer: Answer, model: str) -> bytes:
    """All arrays by name."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **answer.arrays, **answer.more)
    return file.getvalue()


def as_png(answer: Answer, model: str) -> bytes:
    """One image, or a contact sheet."""
    return encode_image(_one_image(answer), "png")


def as_jpeg(answer: Answer, model: str) -> bytes:
    """One image, or a contact sheet."""
    return encode_image(_one_image(answer), "jpeg")


def as_gif(answer: Answer, model: str) -> bytes:
    """The images one after the other."""
    return encode_animation(answer.images, "gif", answer.duration)


def as_webp(answer: Answer, model: str) -> bytes:
    """The images one after the other."""
    return encode_animation(answer.images, "webp", answer.duration)


def _one_image(answer: Answer) -> NDArray[np.uint8]:
    """The bare image, so that it can be posted again; several as a contact sheet."""
    images = answer.images
    if len(images) == 1:
        only: NDArray[np.uint8] = images[0]
        return only
    return contact_sheet(images, columns=answer.columns, gap=answer.gap)


_ARRAYS: dict[str, Writer] = {JSON: as_json, NPY: as_npy, NPZ: as_npz}
_PICTURES: dict[str, Writer] = _ARRAYS | {PNG: as_png, JPEG: as_jpeg}
# In order of preference: `Accept: */*` gets the first.
WRITERS: dict[Outputs, dict[str, Writer]] = {
    Outputs.ARRAYS: _ARRAYS,
    Outputs.PICTURES: _PICTURES,
    Outputs.ANIMATION: _PICTURES | {GIF: as_gif, WEBP: as_webp},
    Outputs.MAP: {JSON: as_json, NPZ: as_npz, PNG: as_png},
}
_DRAWN = frozenset({PNG, JPEG, GIF, WEBP})


def size(answer: Answer, media_type: str) -> int:
    """How many values are worked on to write the answer."""
    return answer.size + answer.picture_size if media_type in _DRAWN else answer.size


def warm_up(manifest: Manifest) -> None:
    """Write and read one image of each kind: Pillow imports its plugins at first use, which takes 200 ms."""
    Image.init()
    spec = manifest.image
    image = np.zeros((1, *spec.shape), np.uint8)
    for writer in _PICTURES.values():
        writer(Answer({"images": image}), manifest.reference)
    read_image(
        encode_image(image[0]),
        height=spec.height,
        width=spec.width,
        channels=spec.channels,
        fit=spec.fit,
        max_pixels=image.size,
    )
