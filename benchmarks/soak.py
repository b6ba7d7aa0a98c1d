"""Runs twice the admitted load for minutes and compares every answer: `python -m benchmarks.soak`.

The clients of a real `vae-serve` always have twice as many rows in flight as the queue admits. The requests
cover every route and many formats; the expected answers are computed beforehand on the same bundle. The exit
status is 0 if every request was answered with 200 or 429, every answer was right, the p99 of the admitted
requests is within the deadline, and memory stayed flat.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import npy
from service.core.metrics import resident_bytes
from tests.live import running
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.images import encode_image, read_image
from vaeserve.bundle.repository import Repository

JSON, NPY, NPZ, PNG = "application/json", "application/x-npy", "application/x-npz", "image/png"
QUEUE_ROWS = 64  # small, so that a few clients are twice the load
PAUSE = 0.05  # seconds after a 429; waiting for Retry-After would end the overload
TOLERANCE = {"mean": 1e-3, "images": 1}  # rounding differs with the batch size


@dataclass(frozen=True)
class Case:
    """A request and the expected array, which is latents or uint8 images."""

    name: str
    rows: int
    method: str
    url: str
    accept: str
    main: str
    expected: NDArray[Any]
    content: bytes | None = None
    content_type: str = JSON

    def arguments(self) -> dict[str, Any]:
        headers = {"Accept": self.accept}
        if self.content is not None:
            headers["Content-Type"] = self.content_type
        return {"headers": headers, "content": self.content}

    def wrong(self, body: bytes) -> str | None:
        """What is wrong with the answer; None if it is right."""
        found = _array(body, self.accept, self.main, self.expected.shape)
        if found.shape != self.expected.shape:
            return f"{self.name}: {found.shape} instead of {self.expected.shape}"
        off = np.abs(found.astype(np.float64) - self.expected).max()
        return None if off <= TOLERANCE[self.main] else f"{self.name}: off by {off:g}"


@dataclass
class Tally:
    """What happened. `seconds` are the latencies of the admitted requests, measured by the clients."""

    statuses: Counter[int] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)  # bytes, once a second
    rows: int = 0


def cases(engine: Engine, seed: int = 0) -> list[Case]:
    """Requests to every route in many formats and sizes."""
    rng = np.random.default_rng(seed)
    spec, latent = engine.manifest.image, engine.manifest.latent.shape
    found: list[Case] = []

    def add(route: str, rows: int, accept: str, expected: NDArray[Any], **more: Any) -> None:
        main = "mean" if route == "/encode" else "images"
        kind = more.get("content_type", JSON).partition(";")[0].rpartition("/")[2]
        name = f"{route} {rows} {kind} → {accept.rpartition('/')[2]}"
        method = "GET" if "?" in route else "POST"
        url = f"/models/{engine.manifest.name}{route}"
        found.append(Case(name, rows, method, url, accept, main, expected, **more))

    for rows, accept in ((1, JSON), (7, NPY), (32, NPZ)):
        images = rng.integers(0, 256, (rows, *spec.shape), dtype=np.uint8)
        mean = engine.encode(images).mean
        again = engine.decode(mean)
        pngs = tuple(encode_image(image) for image in images)
        as_json = json.dumps({"images": [base64.b64encode(png).decode() for png in pngs]}).encode()
        bodies: list[dict[str, Any]] = [
            {"content": npy(images), "content_type": NPY},
            {"content": as_json},
            _form(pngs),
        ]
        if rows == 1:
            bodies += [{"content": pngs[0], "content_type": PNG}]
            bodies += [{"content": json.dumps({"images": images.tolist()}).encode()}]
        for body in bodies:
            add("/encode", rows, accept, mean, **body)
            add("/reconstruct", rows, accept if rows > 1 else PNG, again, **body)
        latents = rng.standard_normal((rows, *latent)).astype(np.float32)
        decoded = engine.decode(latents)
        add("/decode", rows, accept, decoded, content=npy(latents), content_type=NPY)
        add("/decode", rows, accept, decoded, content=json.dumps({"latents": latents.tolist()}).encode())
        assert engine.prior is not None
        drawn = engine.decode(engine.prior.sample(seed=rows, rows=range(rows), temperature=1.0))
        add("/sample", rows, accept, drawn, content=json.dumps({"n": rows, "seed": rows}).encode())
        add(f"/sample?n={rows}&seed={rows}", rows, accept if rows > 1 else PNG, drawn)
    return found


async def soak(url: str, pid: int, requests: list[Case], seconds: float, rows: int) -> Tally:
    """Run clients that together have `rows` rows in flight, for `seconds`."""
    tally = Tally()
    until = time.monotonic() + seconds
    number = max(1, round(rows / (sum(case.rows for case in requests) / len(requests))))
    limits = httpx.Limits(max_connections=number)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(rng: random.Random) -> None:
            while time.monotonic() < until:
                case = rng.choice(requests)
                started = time.monotonic()
                try:
                    answer = await client.request(case.method, case.url, **case.arguments())
                except httpx.HTTPError as error:
                    tally.failures.append(f"{case.name}: {error!r}")
                    continue
                tally.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    tally.seconds.append(time.monotonic() - started)
                    tally.checked[case.name] += 1
                    tally.rows += case.rows
                    if wrong := case.wrong(answer.content):
                        tally.wrong.append(wrong)
                elif answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1:
                    await asyncio.sleep(rng.uniform(0.5, 1.5) * PAUSE)
                else:
                    tally.failures.append(f"{case.name}: {answer.status_code} {answer.text[:200]}")

        async def watch() -> None:
            while time.monotonic() < until:
                tally.resident.append(resident_bytes(pid) or 0)
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(ask(random.Random(index)) for index in range(number)))
    return tally


def verdict(tally: Tally, seconds: float, timeout: float) -> list[tuple[bool, str]]:
    """The claims: whether each holds, and its figures."""
    p50, p99 = np.percentile(tally.seconds or [np.inf], (50, 99))
    # The first fifth is the warm-up, in which pools, arenas and caches fill.
    fifth = max(1, len(tally.resident) // 5)
    early, late = (
        np.median(part) / 1e6 for part in (tally.resident[fifth : 2 * fifth], tally.resident[-fifth:])
    )
    accepted, refused = tally.statuses[200], tally.statuses[429]
    return [
        (
            accepted > 0 and refused > 0,
            f"{accepted} admitted ({tally.rows / seconds:.0f} rows/s), {refused} refused",
        ),
        (
            not tally.failures,
            f"{len(tally.failures)} other answers or broken connections {tally.failures[:3]}",
        ),
        (not tally.wrong, f"{len(tally.wrong)} wrong answers {tally.wrong[:3]}"),
        (
            bool(p99 <= timeout),
            f"admitted requests: p50 {p50:.3f} s, p99 {p99:.3f} s; the deadline is {timeout:g} s",
        ),
        (bool(late - early < max(20, 0.1 * early)), f"memory {early:.0f} MB early, {late:.0f} MB at the end"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        help="a repository, of which mnist or the first model is used",
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--timeout", type=float, default=10, help="the deadline, in seconds")
    options = parser.parse_args()
    repository = Repository(options.models)
    repository.load()
    engines = repository.engines
    (engine,) = (engines.get("mnist") or next(iter(engines.values()))).values()
    requests = cases(engine)
    flags = ["--queue-rows", str(QUEUE_ROWS), "--timeout", str(options.timeout), "--no-access-log"]
    # One worker, because the limits and the memory are per worker.
    with running(options.models, *flags, "--workers", "1") as (process, url):
        tally = asyncio.run(soak(url, process.pid, requests, options.seconds, 2 * QUEUE_ROWS))
        process.terminate()
        if process.wait(60):
            raise SystemExit(f"vae-serve exited with {process.returncode}")
    claims = verdict(tally, options.seconds, options.timeout)
    print(f"{options.seconds:g} s of {len(requests)} kinds of request to {engine.manifest.reference}")
    for holds, text in claims:
        print(f"{'ok ' if holds else 'BAD'} {text}")
    sys.exit(not all(holds for holds, _ in claims))


def _array(body: bytes, media_type: str, main: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if media_type == NPY:
        found: NDArray[Any] = np.load(io.BytesIO(body))
    elif media_type == NPZ:
        with np.load(io.BytesIO(body)) as archive:
            found = archive[main]
    elif media_type == PNG:
        found = _image(body, shape)[np.newaxis]
    elif main == "images":
        found = np.stack([_image(base64.b64decode(each), shape) for each in json.loads(body)[main]])
    else:
        found = np.array(json.loads(body)[main])
    return found


def _image(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return read_image(data, height=shape[1], width=shape[2], channels=shape[3], fit="contain")


def _form(files: tuple[bytes, ...]) -> dict[str, Any]:
    """A form, encoded once: httpx would send it in hundreds of pieces and be slower than the service."""
    fields = [("images", (f"{index}.png", data, PNG)) for index, data in enumerate(files)]
    request = httpx.Request("POST", "http://form", files=fields)
    return {"content": request.read(), "content_type": request.headers["Content-Type"]}


if __name__ == "__main__":
    main()
