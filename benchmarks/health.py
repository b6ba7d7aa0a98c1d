"""Measures the latency of /healthz while large photographs are uploaded: `python -m benchmarks.health`.

Two processes upload 12-megapixel photographs to a real `vae-serve` without a pause, and this one requests
/healthz every 5 ms. A load balancer removes a replica that does not answer in time.
"""

import argparse
import http.client
import io
import multiprocessing
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.live import serving

SIZE = (4000, 3000)
EVERY = 0.005  # seconds between two requests


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--uploaders", type=int, default=2)
    parser.add_argument("--format", choices=("jpeg", "progressive", "png", "webp"), default="jpeg")
    options = parser.parse_args()
    body, kind = photograph(options.format)
    with serving(options.models, "--no-access-log") as url:
        port = int(url.rpartition(":")[2])
        idle = ask(port, min(5, options.seconds))
        spawn = multiprocessing.get_context("spawn")
        count = spawn.Value("i", 0)
        uploaders = [
            spawn.Process(target=upload, args=(port, body, kind, count), daemon=True)
            for _ in range(options.uploaders)
        ]
        for process in uploaders:
            process.start()
        while count.value < options.uploaders:
            time.sleep(0.05)
        before = count.value
        busy = ask(port, options.seconds)
        uploads = count.value - before
        for process in uploaders:
            process.terminate()
    print(f"photograph: {options.format}, {SIZE[0]} × {SIZE[1]}, {len(body) / 1e6:.1f} MB")
    print(f"/healthz, idle: {summary(idle)}")
    print(f"/healthz, {uploads / options.seconds:.1f} uploads a second: {summary(busy)}")


def photograph(kind: str) -> tuple[bytes, str]:
    """An image file with as much detail as a photograph, and its media type."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8)).resize(SIZE)
    noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-8, 9, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    match kind:
        case "png":
            image.save(file, "PNG", compress_level=1)
        case "webp":
            # The service accepts half as many pixels in this format.
            image.resize((SIZE[0] // 2, SIZE[1] // 2)).save(file, "WEBP", quality=90, method=0)
        case _:
            image.save(file, "JPEG", quality=90, progressive=kind == "progressive")
    return file.getvalue(), "image/jpeg" if kind == "progressive" else f"image/{kind}"


def upload(port: int, body: bytes, kind: str, count) -> None:  # type: ignore[no-untyped-def]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        connection.request("POST", "/encode", body, {"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {text.decode()}")
        with count.get_lock():
            count.value += 1


def ask(port: int, seconds: float) -> np.ndarray:
    """The latency of each /healthz request, in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"/healthz answered {answer.status}")
        took.append(time.perf_counter() - began)
        time.sleep(max(0.0, EVERY - took[-1]))
    return np.array(took)


def summary(took: np.ndarray) -> str:
    p50, p99, worst = 1e3 * np.percentile(took, [50, 99, 100])
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {worst:.1f} ms of {len(took):,}"


if __name__ == "__main__":
    main()
