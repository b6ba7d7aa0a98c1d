"""Encodes images and latents as request bodies: one file unchanged, several as a form, arrays as npy."""

import base64
import io
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.formats import FORMATS
from vaeserve.client.results import ByteImages, Floats

ImageFile = str | os.PathLike[str] | bytes  # a path, or the bytes of a file
Images = ImageFile | Sequence[ImageFile] | Sequence[ByteImages] | ByteImages
Latents = NDArray[np.floating]  # [n, *latent]
Rows = Sequence[ImageFile] | NDArray[Any]  # a slice of it is one request


class Body(NamedTuple):
    content: bytes
    type: str


def image_rows(images: Images) -> Rows:
    """Files as a list, arrays as uint8 [n, h, w, c] or [n, h, w]."""
    if isinstance(images, str | os.PathLike | bytes):
        return [images]
    if not len(images):
        raise ValueError("images is empty; give at least one")
    files = [image for image in images if isinstance(image, str | os.PathLike | bytes)]
    if len(files) == len(images):
        return files
    if files:
        raise TypeError("images are a mixture of arrays and files; send them in two calls")
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"images are {array.dtype} {list(array.shape)}; they must be uint8 [n, h, w, c] or [n, h, w]"
        )
    return array


def latent_rows(latents: Latents) -> Floats:
    """Latents as float32 [n, *latent]."""
    array = np.ascontiguousarray(latents, np.float32)
    if array.ndim < 2 or len(array) == 0:
        raise ValueError(f"latents are {list(array.shape)}; they must be [n, *latent] with n ≥ 1")
    return array


def rows_body(rows: Rows) -> Body:
    """The smallest body for images or latents."""
    if isinstance(rows, np.ndarray):
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(rows), allow_pickle=False)
        return Body(file.getvalue(), "application/x-npy")
    files = _contents(rows)
    if len(files) == 1:
        for magic, media_type, _ in FORMATS:
            if files[0].startswith(magic):
                return Body(files[0], media_type)
    return _form(files)


def points_body(images: Images | None, latents: Latents | None) -> Body:
    """The body for points of the latent space. Images and latents together need JSON."""
    if latents is None and images is not None:
        return rows_body(image_rows(images))
    if images is None and latents is not None:
        return rows_body(latent_rows(latents))
    fields: dict[str, Any] = {}
    if images is not None and latents is not None:
        rows = image_rows(images)
        fields["images"] = rows.tolist() if isinstance(rows, np.ndarray) else _base64(rows)
        fields["latents"] = latent_rows(latents).tolist()
    return Body(json.dumps(fields).encode(), "application/json")


def _base64(files: Sequence[ImageFile]) -> list[str]:
    return [base64.b64encode(file).decode() for file in _contents(files)]


def _contents(files: Sequence[ImageFile]) -> list[bytes]:
    return [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files]


def _form(files: list[bytes]) -> Body:
    boundary = secrets.token_hex(16)  # long enough to occur in no image
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="image"\r\n\r\n'.encode()
    parts = [piece for file in files for piece in (head, file, b"\r\n")]
    content = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return Body(content, f"multipart/form-data; boundary={boundary}")
