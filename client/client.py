"""`Client`: encode, decode, reconstruct and sample over HTTP, with numpy arrays on both sides."""

import base64
import io
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from client.errors import Refused, Unreachable, refused

ByteImages = NDArray[np.uint8]  # [n, h, w, c]
Floats = NDArray[np.float32]
ImageFile = str | os.PathLike[str] | bytes  # a path, or the bytes of a file
Images = ImageFile | Sequence[ImageFile] | Sequence[ByteImages] | ByteImages

NPY, NPZ = "application/x-npy", "application/x-npz"
ROWS = 128  # images or latents of one request; more are sent as several, in order
RETRIES = 5
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 8.0, 60.0  # seconds

_TYPES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
)


class Posterior(NamedTuple):
    """q(z|x) of each image: mean and logvar, float32 [n, *latent]; `model` is name@version."""

    mean: Floats
    logvar: Floats
    model: str


class Reconstructions(NamedTuple):
    """Images uint8 [n, h, w, c] and their mean squared error on [0, 1], float [n]."""

    images: ByteImages
    error: NDArray[np.floating]
    model: str


class Samples(NamedTuple):
    """Images uint8 [n, h, w, c] drawn from the prior; the same seed draws them again."""

    images: ByteImages
    seed: int
    model: str


class Client:
    """A connection to one service. Thread-safe; close it, or use it as a context manager.

        with Client("http://localhost:8000") as client:
            latents = client.encode("photo.jpg").mean
            images = client.decode(latents)

    Images are paths, bytes of image files, or arrays uint8 [n, h, w, c] (or [n, h, w]) of exactly the
    model's size. `model` is `name` or `name@version`; None takes the service's default. Everything the
    service does is safe to repeat, so 429, 503 and broken connections are tried again, with growing
    pauses or the Retry-After that it asks for.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._model = model
        self._retries = retries
        self._sleep = sleep

    def encode(self, images: Images) -> Posterior:
        """The posterior of each image. `mean` is its embedding."""
        parts = [self._arrays("/encode", body, {"return": "mean,logvar"}) for body in _bodies(images, ROWS)]
        mean = np.concatenate([arrays["mean"] for arrays, _ in parts])
        logvar = np.concatenate([arrays["logvar"] for arrays, _ in parts])
        return Posterior(mean, logvar, _same_model(parts))

    def decode(self, latents: NDArray[np.floating]) -> ByteImages:
        """Images uint8 [n, h, w, c] of latents [n, *latent]."""

        array = np.ascontiguousarray(latents, np.float32)
        if array.ndim < 2 or len(array) == 0:
            raise ValueError(f"latents must be [n, *latent] with n ≥ 1, got {list(array.shape)}")
        parts = [
            self._arrays("/decode", _npy_body(array[at : at + ROWS]), {}) for at in range(0, len(array), ROWS)
        ]
        return np.concatenate([arrays["images"] for arrays, _ in parts])

    def reconstruct(self, images: Images) -> Reconstructions:
        """Each image through encoder and decoder, and how far it comes out from what went in."""
        parts = [self._arrays("/reconstruct", body, {}) for body in _bodies(images, ROWS)]
        return Reconstructions(
            np.concatenate([arrays["images"] for arrays, _ in parts]),
            np.concatenate([arrays["error"] for arrays, _ in parts]),
            _same_model(parts),
        )

    def sample(self, n: int = 1, *, seed: int | None = None, temperature: float = 1.0) -> Samples:
        """`n` images from the prior. Without a seed the service makes one up and says which."""
        query = {"n": n, "temperature": temperature} | ({} if seed is None else {"seed": seed})
        arrays, response = self._arrays("/sample", None, query)
        return Samples(arrays["images"], int(response.headers["X-Seed"]), response.headers["X-Model"])

    def picture(self, route: str, body: Images | NDArray[np.floating] | None, **query: Any) -> bytes:
        """What `route` (for instance "/sample") shows as a PNG: one image, or all as a contact sheet."""
        sent = None
        if route == "/decode":
            sent = _npy_body(np.ascontiguousarray(body, np.float32))
        elif body is not None:
            (sent,) = _bodies(body, ROWS * 1000)  # type: ignore[arg-type]
        return self._request(route, sent, query, "image/png").content

    def models(self) -> dict[str, Any]:
        """What is loaded: the answer of GET /models."""
        answer: dict[str, Any] = self._request("/models", None, {}, "application/json").json()
        return answer

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _arrays(
        self, route: str, body: "_Body | None", query: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], httpx.Response]:
        response = self._request(route, body, query, NPZ)
        with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}, response

    def _request(
        self, route: str, body: "_Body | None", query: Mapping[str, Any], accept: str
    ) -> httpx.Response:
        params = dict(query) | ({"model": self._model} if self._model and route != "/models" else {})
        headers = {"Accept": accept} | ({"Content-Type": body.type} if body else {})
        for attempt in range(self._retries + 1):
            failure: Refused | Unreachable
            wait = random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
            try:
                response = self._http.request(
                    "POST" if body else "GET",
                    route,
                    params=params,
                    headers=headers,
                    content=body.content if body else None,
                )
            except httpx.TransportError as error:
                failure = Unreachable(f"no answer from {self._http.base_url}: {error}")
                failure.__cause__ = error
            else:
                if response.status_code < 400:
                    return response
                failure = refused(response)
                if response.status_code not in (429, 503):
                    raise failure
                wait = _retry_after(response, wait)
            if attempt < self._retries:
                self._sleep(wait)
        raise failure


class _Body(NamedTuple):
    content: bytes
    type: str


def _bodies(images: Images, rows: int) -> list[_Body]:
    """One request body for every `rows` images: a file as it is, files in JSON, arrays as npy."""
    if isinstance(images, str | os.PathLike | bytes):
        return [_file_body(_content(images))]
    if not len(images):
        raise ValueError("there are no images")
    files = [image for image in images if isinstance(image, str | os.PathLike | bytes)]
    if len(files) == len(images):
        return [
            _json_body([_content(file) for file in files[at : at + rows]])
            for at in range(0, len(files), rows)
        ]
    if files:
        raise TypeError("send either arrays or files, not both in one call")
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"arrays must be uint8 [n, h, w, c] or [n, h, w], got {array.dtype} {list(array.shape)}"
        )
    return [_npy_body(array[at : at + rows]) for at in range(0, len(array), rows)]


def _content(file: ImageFile) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _file_body(content: bytes) -> _Body:
    for magic, media_type in _TYPES:
        if content.startswith(magic):
            return _Body(content, media_type)
    return _json_body([content])  # the service says best what is wrong with it


def _json_body(files: list[bytes]) -> _Body:
    encoded = ",".join(f'"{base64.b64encode(file).decode()}"' for file in files)
    return _Body(f'{{"images":[{encoded}]}}'.encode(), "application/json")


def _npy_body(array: NDArray[Any]) -> _Body:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return _Body(file.getvalue(), NPY)


def _same_model(parts: Sequence[tuple[Any, httpx.Response]]) -> str:
    """The model of all parts: latents of two models, or of two versions, must never be mixed."""
    models = {response.headers["X-Model"] for _, response in parts}
    if len(models) > 1:
        raise Unreachable(
            f"the service changed its model during the call ({', '.join(sorted(models))}); repeat it"
        )
    return str(models.pop())


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the service asks to wait. (A date is not what ours sends; then the usual pause.)"""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_RETRY_AFTER) + random.uniform(0, 0.5) if value.isdecimal() else otherwise
