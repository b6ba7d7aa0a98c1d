"""`Client`: every operation of the service over HTTP, with numpy arrays in and out."""

import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from vaeserve.client import bodies
from vaeserve.client.bodies import Body, Images, Latents, Rows
from vaeserve.client.errors import BadRequest, Refused, Unreachable, refused
from vaeserve.client.results import (
    ByteImages,
    Floats,
    Posterior,
    Reconstructions,
    Samples,
    Scores,
    Sum,
    Traversal,
)

NPZ = "application/x-npz"
ROWS = 128  # images or latents in one request; more are sent in several, in order
RETRIES = 5
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 8.0, 60.0  # seconds

Answer = tuple[dict[str, NDArray[Any]], httpx.Response]  # the arrays of a response, and the response


class Client:
    """A connection to one service. Thread-safe. Close it, or use it as a context manager.

        with Client("http://localhost:8000") as client:
            latents = client.encode("photo.jpg").mean
            images = client.decode(latents)

    Images are paths, bytes of image files, or arrays uint8 [n, h, w, c] (or [n, h, w]) of exactly the
    model's size. `model` is `name` or `name@version`; None is the service's default. Every request is safe
    to repeat, so the client retries after 429, 503 and broken connections, with growing pauses or the
    Retry-After of the response. What is too large for one request is sent in several.

    The errors are in vaeserve.client.errors.
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
        self._rows = ROWS  # fewer as soon as the service answers that a request is too large

    def encode(self, images: Images) -> Posterior:
        """The posterior of each image. `mean` is its embedding."""
        parts = self._of_rows("/encode", bodies.image_rows(images), {"return": "mean,logvar"})
        mean = np.concatenate([arrays["mean"] for arrays, _ in parts])
        logvar = np.concatenate([arrays["logvar"] for arrays, _ in parts])
        return Posterior(mean, logvar, _same_model(parts))

    def decode(self, latents: Latents) -> ByteImages:
        """Images uint8 [n, h, w, c] of latents [n, *latent]."""
        parts = self._of_rows("/decode", bodies.latent_rows(latents), {})
        _same_model(parts)
        return np.concatenate([arrays["images"] for arrays, _ in parts])

    def reconstruct(self, images: Images) -> Reconstructions:
        """Each image through encoder and decoder, with its squared error."""
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
        """`n` images from the prior. Without a seed the service makes one up and returns it.

        `first` is the row of the seed to begin at: `sample(2, seed=7, first=5)` are the last two of
        `sample(7, seed=7)`. `prior` is "normal", "mixture" or "flow"; None is the model's own choice.
        `label`, a name or a number, draws images of that label. `truncation` cuts the noise off at that many
        deviations.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        options = {
            "temperature": temperature,
            "seed": seed,
            "prior": prior,
            "label": label,
            "truncation": truncation,
        }
        query = {name: value for name, value in options.items() if value is not None}

        def ask(rows: range) -> httpx.Response:
            part = {"n": len(rows), "first": first + rows.start}
            response = self._request("/sample", None, query | part, NPZ)
            query["seed"] = int(response.headers["X-Seed"])  # the next requests use it too
            return response

        parts = self._parts(n, ask)
        images = np.concatenate([arrays["images"] for arrays, _ in parts])
        return Samples(images, int(parts[0][1].headers["X-Seed"]), _same_model(parts))

    def score(
        self,
        images: Images,
        *,
        k: int | None = None,
        seed: int | None = None,
        first: int = 0,
        overlay: bool = False,
    ) -> Scores:
        """How well the model explains each image, and how unusual that is.

        `k` adds the importance-weighted bound with k samples, `overlay` pictures of what is unusual. Image i
        has the noise of row `first` + i of `seed`.
        """
        seed = random.getrandbits(32) if seed is None else seed  # the same for all requests
        query: dict[str, Any] = {"seed": seed} | ({} if k is None else {"k": k})
        query |= {"return": "overlay"} if overlay else {}
        rows = bodies.image_rows(images)

        def ask(part: range) -> httpx.Response:
            body = bodies.rows_body(rows[part.start : part.stop])
            return self._request("/score", body, query | {"first": first + part.start}, NPZ)

        parts = self._parts(len(rows), ask)
        found = {name: np.concatenate([arrays[name] for arrays, _ in parts]) for name in parts[0][0]}
        return Scores(
            **{name: found[name] for name in ("elbo", "distortion", "rate", "log_prior", "error")},
            p_value=found.get("p_value"),
            p_values={name[2:]: found[name] for name in found if name.startswith("p_")},
            iwae=found.get("iwae"),
            seed=seed,
            model=_same_model(parts),
            local=found.get("local"),
            where=found.get("where"),
            is_anomaly=found.get("is_anomaly"),
            overlay=found.get("overlay"),
        )

    def interpolate(
        self,
        images: Images | None = None,
        *,
        latents: Latents | None = None,
        n: int = 9,
        method: str = "slerp",
    ) -> ByteImages:
        """`n` frames uint8 [n, h, w, c] from one point to another.

        The two points are images, latents [m, *latent], or one of each, images first. `method`: slerp or
        lerp.
        """
        return self._points("/interpolate", images, latents, {"n": n, "method": method})[0]["images"]

    def traverse(
        self,
        images: Images | None = None,
        *,
        latents: Latents | None = None,
        dimensions: Sequence[int] | None = None,
        top: int = 8,
        n: int = 9,
        extent: float = 3.0,
    ) -> Traversal:
        """What single dimensions do to one image or latent, from -extent to +extent in n steps.

        Without `dimensions`, the `top` ones with the highest KL. Without a point, around the origin.
        """
        query: dict[str, Any] = {"top": top, "n": n, "extent": extent}
        if dimensions is not None:
            query["dimensions"] = ",".join(map(str, dimensions))
        found, model = self._points("/traverse", images, latents, query)
        frames = found["images"].reshape(len(found["dimensions"]), n, *found["images"].shape[1:])
        return Traversal(frames, found["dimensions"], found["values"], model)

    def arithmetic(
        self,
        images: Images | None = None,
        *,
        latents: Latents | None = None,
        weights: Sequence[float] | None = None,
    ) -> Sum:
        """The weighted sum of images and latents, images first, decoded: weights [1, -1, 1] are a - b + c.

        Without weights, the average.
        """
        query = {} if weights is None else {"weights": ",".join(map(str, weights))}
        found, model = self._points("/arithmetic", images, latents, query)
        return Sum(found["images"][0], found["latents"][0], model)

    def similarity(
        self, images: Images | None = None, *, latents: Latents | None = None, metric: str = "cosine"
    ) -> Floats:
        """How alike images and latents are, images first: float32 [n, n].

        The cosine, or for images alone the distances `mahalanobis` and `symmetric_kl`.
        """
        return self._points("/similarity", images, latents, {"metric": metric})[0]["matrix"]

    def map(self, model: str) -> dict[str, NDArray[Any]]:
        """The map of a model's latent space: mean, components, points, labels, latents and thumbnails."""
        response = self._request(f"/models/{model.replace('@', '/versions/')}/map", None, {}, NPZ)
        return _arrays(response)

    def picture(
        self,
        route: str,
        images: Images | None = None,
        *,
        latents: Latents | None = None,
        media_type: str = "image/png",
        **query: Any,
    ) -> bytes:
        """The answer of a route, for instance "/sample", as a picture: one image, or all as a contact sheet.

        `media_type`: image/png, image/jpeg, and for
        /interpolate the animations image/gif and image/webp.
        """
        read = images is None and latents is None and route.endswith(("/sample", "/map"))
        body = None if read else bodies.points_body(images, latents)
        return self._request(route, body, query, media_type).content

    def models(self) -> dict[str, Any]:
        """The loaded models: the answer of GET /models."""
        answer: dict[str, Any] = self._request("/models", None, {}, "application/json").json()
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _of_rows(self, route: str, rows: Rows, query: Mapping[str, Any]) -> list[Answer]:
        """The answers for all rows."""

        def ask(part: range) -> httpx.Response:
            return self._request(route, bodies.rows_body(rows[part.start : part.stop]), query, NPZ)

        return self._parts(len(rows), ask)

    def _parts(self, total: int, ask: Callable[[range], httpx.Response]) -> list[Answer]:
        """The answers for `total` rows, in their order. A request that is too large is halved."""
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

    def _points(
        self, route: str, images: Images | None, latents: Latents | None, query: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], str]:
        """The arrays of one answer about points, and the model's name@version."""
        response = self._request(route, bodies.points_body(images, latents), query, NPZ)
        return _arrays(response), response.headers["X-Model"]

    def _request(
        self, route: str, body: Body | None, query: Mapping[str, Any], accept: str
    ) -> httpx.Response:
        params = dict(query)
        if self._model and not route.startswith("/models"):
            params["model"] = self._model
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


def _arrays(response: httpx.Response) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _same_model(parts: Sequence[tuple[Any, httpx.Response]]) -> str:
    """The model of all parts. Latents of two models, or of two versions, must never be mixed."""
    models = {response.headers["X-Model"] for _, response in parts}
    if len(models) > 1:
        raise Unreachable(
            f"the service changed its model during the call ({', '.join(sorted(models))}); repeat it"
        )
    return str(models.pop())


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """The seconds of Retry-After, which proxies send as a date; `otherwise` without one."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.isdecimal() else _until(value)
    except ValueError:
        return otherwise
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) + random.uniform(0, 0.5)


def _until(date: str) -> float:
    then = parsedate_to_datetime(date)
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
