"""Images and latents → request bodies: one file as it is, several as a form, arrays as npy."""

import base64
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
ImageFile = str | os.PathLike[str] | bytes  # a path, or the bytes of a file
Images = ImageFile | Sequence[ImageFile] | Sequence[ByteImages] | ByteImages
Rows = Sequence[ImageFile] | NDArray[Any]  # what can be cut into several requests

NPY = "application/x-npy"

_TYPES = (
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
        raise ValueError("there are no images")
    files = [image for image in images if isinstance(image, str | os.PathLike | bytes)]
    if len(files) == len(images):
        return files
    if files:
        raise TypeError("send either arrays or files, not both in one call")
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"arrays must be uint8 [n, h, w, c] or [n, h, w], got {array.dtype} {list(array.shape)}"
        )
    return array


def latent_rows(latents: NDArray[np.floating]) -> Rows:
    """Latents as float32 [n, *latent]."""
    array = np.ascontiguousarray(latents, np.float32)
    if array.ndim < 2 or len(array) == 0:
        raise ValueError(f"latents must be [n, *latent] with n ≥ 1, got {list(array.shape)}")
    return array


def body(rows: Rows, *, forms: bool) -> Body:
    """The body for these rows. `forms`: whether the service reads multipart/form-data."""
    if isinstance(rows, np.ndarray):
        return _npy(rows)
    files = [file if isinstance(file, bytes) else Path(file).read_bytes() for file in rows]
    if len(files) == 1:
        for magic, media_type in _TYPES:
            if files[0].startswith(magic):
                return Body(files[0], media_type)
    return _form(files) if forms else _json(files)


def _npy(array: NDArray[Any]) -> Body:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return Body(file.getvalue(), NPY)


def _form(files: list[bytes]) -> Body:
    boundary = secrets.token_hex(16)  # so long that no image has it inside
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="image"\r\n\r\n'.encode()
    parts = [piece for file in files for piece in (head, file, b"\r\n")]
    content = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return Body(content, f"multipart/form-data; boundary={boundary}")


def _json(files: list[bytes]) -> Body:
    encoded = ",".join(f'"{base64.b64encode(file).decode()}"' for file in files)
    return Body(f'{{"images":[{encoded}]}}'.encode(), "application/json")
