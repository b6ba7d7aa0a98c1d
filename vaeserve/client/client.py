"""`Client`: encode, decode, reconstruct, sample and the latent routes over HTTP, with numpy on both sides."""

import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from vaeserve.client import bodies
from vaeserve.client.bodies import Body, ByteImages, Images, Rows
from vaeserve.client.errors import BadRequest, Refused, Unreachable, refused
from vaeserve.client.latent import Scores, Sum, Traversal

Floats = NDArray[np.float32]
Points = Images | NDArray[np.floating]  # images, or latents [n, *latent]

NPZ = "application/x-npz"
ROWS = 128  # images or latents of one request; more are sent as several, in order
RETRIES = 5
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 8.0, 60.0  # seconds

Answer = tuple[dict[str, NDArray[Any]], httpx.Response]  # its arrays, and the rest of it


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
    pauses or the Retry-After that it asks for. What is too large for one request goes in several.
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
        # What was learned of the service: earlier ones read no forms, and limits are theirs to set.
        self._forms = True
        self._rows = ROWS

    def encode(self, images: Images) -> Posterior:
        """The posterior of each image. `mean` is its embedding."""
        parts = self._of_rows("/encode", bodies.image_rows(images), {"return": "mean,logvar"})
        mean = np.concatenate([arrays["mean"] for arrays, _ in parts])
        logvar = np.concatenate([arrays["logvar"] for arrays, _ in parts])
        return Posterior(mean, logvar, _same_model(parts))

    def decode(self, latents: NDArray[np.floating]) -> ByteImages:
        """Images uint8 [n, h, w, c] of latents [n, *latent]."""
        parts = self._of_rows("/decode", bodies.latent_rows(latents), {})
        _same_model(parts)
        return np.concatenate([arrays["images"] for arrays, _ in parts])

    def reconstruct(self, images: Images) -> Reconstructions:
        """Each image through encoder and decoder, and how far it comes out from what went in."""
        parts = self._of_rows("/reconstruct", bodies.image_rows(images), {})
        return Reconstructions(
            np.concatenate([arrays["images"] for arrays, _ in parts]),
            np.concatenate([arrays["error"] for arrays, _ in parts]),
            _same_model(parts),
        )

    def sample(
        self,
        n: int = 1,
        *,
        seed: int | None = None,
        first: int = 0,
        temperature: float = 1.0,
        prior: str | None = None,
        label: str | int | None = None,
        truncation: float | None = None,
    ) -> Samples:
        """`n` images from the prior. Without a seed the service makes one up and says which.

        `first` begins at that image of the seed: `sample(2, seed=7, first=5)` are the last two of
        `sample(7, seed=7)`. `prior`: "normal", "mixture" or "flow", None the one that the model prefers;
        `label`, a name or its place among the model's labels, draws images of that label; `truncation` cuts
        the noise off at so many deviations.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        asked = {
            "temperature": temperature,
            "seed": seed,
            "prior": prior,
            "label": label,
            "truncation": truncation,
        }
        query = {name: value for name, value in asked.items() if value is not None}

        def ask(rows: range) -> httpx.Response:
            cut = {"n": len(rows)} | _from(first + rows.start)
            response = self._request("/sample", None, query | cut, NPZ)
            query["seed"] = int(response.headers["X-Seed"])  # one for all of the requests
            return response

        parts = self._parts(n, ask)
        images = np.concatenate([arrays["images"] for arrays, _ in parts])
        return Samples(images, int(parts[0][1].headers["X-Seed"]), _same_model(parts))

    def score(
        self, images: Images, *, k: int | None = None, seed: int | None = None, first: int = 0
    ) -> Scores:
        """How well the model explains each image, and how unusual that is; `k`: also the bound.

        The noise is that of the rows of `seed` from `first` on, one for each image.
        """
        seed = random.getrandbits(32) if seed is None else seed  # one for all of the requests
        query = {"seed": seed} | ({} if k is None else {"k": k})
        rows = bodies.image_rows(images)

        def ask(part: range) -> httpx.Response:
            drawn = query | _from(first + part.start)
            return self._send("/score", rows[part.start : part.stop], drawn, NPZ)

        parts = self._parts(len(rows), ask)
        found = {name: np.concatenate([arrays[name] for arrays, _ in parts]) for name in parts[0][0]}
        return Scores(
            **{name: found[name] for name in ("elbo", "distortion", "rate", "log_prior", "error")},
            p_value=found.get("p_value"),
            p_values={name[2:]: found[name] for name in found if name.startswith("p_")},
            iwae=found.get("iwae"),
            seed=seed,
            model=_same_model(parts),
        )

    def interpolate(
        self,
        images: Points | None = None,
        n: int = 9,
        *,
        latents: Points | None = None,
        method: str = "slerp",
    ) -> ByteImages:
        """`n` images uint8 [n, h, w, c] between two images or two latents; method slerp or lerp."""
        points = latents if images is None else images
        if points is None:
            raise ValueError("There is nothing to interpolate between. Pass two images or two latents.")
        response = self._send("/interpolate", _points(points), {"n": n, "method": method}, NPZ)
        return _arrays(response)["images"]

    def traverse(
        self,
        point: Points | None = None,
        *,
        dimensions: Sequence[int] | None = None,
        top: int = 8,
        n: int = 9,
        extent: float = 3.0,
    ) -> Traversal:
        """What single dimensions do to one image or latent, from -extent to +extent in n steps.

        Without `dimensions`, the `top` ones with the highest KL; without a point, at latents of 0.
        """
        query: dict[str, Any] = {"top": top, "n": n, "extent": extent}
        if dimensions is not None:
            query["dimensions"] = ",".join(map(str, dimensions))
        if point is None:
            response = self._request("/traverse", Body(b"{}", "application/json"), query, NPZ)
        else:
            response = self._send("/traverse", _points(point), query, NPZ)
        found = _arrays(response)
        images = found["images"].reshape(len(found["dimensions"]), n, *found["images"].shape[1:])
        return Traversal(images, found["dimensions"], found["values"], response.headers["X-Model"])

    def arithmetic(self, points: Points, weights: Sequence[float] | None = None) -> Sum:
        """The weighted sum of images or latents, decoded: weights [1, -1, 1] are a - b + c.

        Without weights, their average.
        """
        query = {} if weights is None else {"weights": ",".join(map(str, weights))}
        response = self._send("/arithmetic", _points(points), query, NPZ)
        found = _arrays(response)
        return Sum(found["images"][0], found["latents"][0], response.headers["X-Model"])

    def similarity(self, points: Points, *, metric: str = "cosine") -> Floats:
        """How alike images or latents are, float32 [n, n]: by cosine; or, of images alone, how far apart by
        mahalanobis or symmetric_kl."""
        response = self._send("/similarity", _points(points), {"metric": metric}, NPZ)
        return _arrays(response)["matrix"]

    def map(self, model: str) -> dict[str, NDArray[Any]]:
        """The map of a model's latent space: mean, components, points, labels, latents, thumbnails, …"""
        response = self._request(f"/models/{model.replace('@', '/versions/')}/map", None, {}, NPZ)
        return _arrays(response)

    def picture(
        self, route: str, rows: Points | None = None, *, media_type: str = "image/png", **query: Any
    ) -> bytes:
        """What `route` (for instance "/sample") shows as a PNG: one image, or all as a contact sheet.

        `media_type`: image/jpeg, and of /interpolate the animations image/gif and image/webp.
        """
        if rows is None:
            return self._request(route, None, query, media_type).content
        return self._send(route, _points(rows), query, media_type).content

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

    def _of_rows(self, route: str, rows: Rows, query: Mapping[str, Any]) -> list[Answer]:
        """The answers for all of these images or latents."""
        return self._parts(
            len(rows), lambda part: self._send(route, rows[part.start : part.stop], query, NPZ)
        )

    def _parts(self, total: int, ask: Callable[[range], httpx.Response]) -> list[Answer]:
        """The answers for so many rows, in their order; requests that are too large are sent in halves."""
        done = 0
        parts: list[Answer] = []
        while done < total:
            part = range(done, min(done + min(self._rows, ROWS), total))
            try:
                response = ask(part)
            except BadRequest as error:
                if error.status != 413 or len(part) == 1:
                    raise
                self._rows = min(self._rows, len(part) // 2)
            else:
                parts.append((_arrays(response), response))
                done = part.stop
        return parts

    def _send(self, route: str, rows: Rows, query: Mapping[str, Any], accept: str) -> httpx.Response:
        body = bodies.body(rows, forms=self._forms)
        try:
            return self._request(route, body, query, accept)
        except BadRequest as error:
            if error.status != 415 or not body.is_form:
                raise
            self._forms = False
        return self._request(route, bodies.body(rows, forms=False), query, accept)

    def _request(
        self, route: str, body: Body | None, query: Mapping[str, Any], accept: str
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
                wait = failure.retry_after = _retry_after(response, wait)
            if attempt < self._retries:
                self._sleep(wait)
        raise failure


def _from(first: int) -> dict[str, int]:
    """The option that says where to begin; the beginning need not be said."""
    return {"first": first} if first else {}


def _points(points: Points) -> Rows:
    """Arrays of floats are latents, everything else is images."""
    if isinstance(points, np.ndarray) and np.issubdtype(points.dtype, np.floating):
        return bodies.latent_rows(points.astype(np.float32))
    return bodies.image_rows(points)  # type: ignore[arg-type]


def _arrays(response: httpx.Response) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _same_model(parts: Sequence[tuple[Any, httpx.Response]]) -> str:
    """The model of all parts: latents of two models, or of two versions, must never be mixed."""
    models = {response.headers["X-Model"] for _, response in parts}
    if len(models) > 1:
        raise Unreachable(
            f"the service changed its model during the call ({', '.join(sorted(models))}); repeat it"
        )
    return str(models.pop())


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the service asks to wait; proxies ask with a date."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.isdecimal() else _until(value)
    except ValueError:
        return otherwise
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) + random.uniform(0, 0.5)


def _until(date: str) -> float:
    then = parsedate_to_datetime(date)
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
