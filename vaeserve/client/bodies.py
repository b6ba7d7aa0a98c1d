"""Images and latents as request bodies: a single file as it is, several as a form, arrays as npy."""

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

from vaeserve.client.results import ByteImages, Floats

ImageFile = str | os.PathLike[str] | bytes  # a path, or the bytes of a file
Images = ImageFile | Sequence[ImageFile] | Sequence[ByteImages] | ByteImages
Latents = NDArray[np.floating]  # [n, *latent]
Rows = Sequence[ImageFile] | NDArray[Any]  # can be split over several requests

MAGIC = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
)


class Body(NamedTuple):
    content: bytes
    type: str

    @property
    def is_form(self) -> bool:
        return self.type.startswith("multipart/")


def image_rows(images: Images) -> Rows:
    """Files as a list, arrays as uint8 [n, h, w, c] or [n, h, w]."""
    if isinstance(images, str | os.PathLike | bytes):
        return [images]
    if not len(images):
        raise ValueError("there are no images; give one or more")
    files = [image for image in images if isinstance(image, str | os.PathLike | bytes)]
    if len(files) == len(images):
        return files
    if files:
        raise TypeError("images are both arrays and files, not one kind; send them in two calls")
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


def rows_body(rows: Rows, *, forms: bool) -> Body:
    """The smallest body for images or latents. `forms`: whether the service reads multipart/form-data."""
    if isinstance(rows, np.ndarray):
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(rows), allow_pickle=False)
        return Body(file.getvalue(), "application/x-npy")
    files = _contents(rows)
    if len(files) == 1:
        for magic, media_type in MAGIC:
            if files[0].startswith(magic):
                return Body(files[0], media_type)
    return _form(files) if forms else json_body(files)


def json_body(images: Rows | None, latents: Floats | None = None) -> Body:
    """Images and latents in one JSON body, which is the only kind that holds both."""
    fields: dict[str, Any] = {}
    if isinstance(images, np.ndarray):
        fields["images"] = images.tolist()
    elif images is not None:
        fields["images"] = [base64.b64encode(file).decode() for file in _contents(images)]
    if latents is not None:
        fields["latents"] = latents.tolist()
    return Body(json.dumps(fields).encode(), "application/json")


def _contents(files: Sequence[ImageFile]) -> list[bytes]:
    return [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files]


def _form(files: list[bytes]) -> Body:
    boundary = secrets.token_hex(16)  # long enough to occur in no image
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="image"\r\n\r\n'.encode()
    parts = [piece for file in files for piece in (head, file, b"\r\n")]
    content = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return Body(content, f"multipart/form-data; boundary={boundary}")
