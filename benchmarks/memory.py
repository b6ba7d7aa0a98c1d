"""Measures the resident memory of each worker under mixed load. It should stay flat and below 250 MB.

    python -m benchmarks.memory --seconds 600 --workers 2

Several threads call all routes with batches of every size. Prints one line every ten seconds, in MB, and the
peak of each worker at the end. Linux only: sizes are read from /proc.
"""

import argparse
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from service.core.metrics import resident_bytes
from tests.live import running
from tests.service.server.processes import workers
from vaeserve import Client

CALLERS = 4
EVERY = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    over = threading.Event()
    flags = ["--workers", str(options.workers), "--no-access-log"]
    with running(options.models, *flags) as (process, url):
        callers = [threading.Thread(target=call, args=(url, seed, over)) for seed in range(CALLERS)]
        for caller in callers:
            caller.start()
        started, sizes = time.monotonic(), {}
        try:
            while (passed := time.monotonic() - started) < options.seconds:
                time.sleep(EVERY)
                now = {
                    pid: (resident_bytes(pid) or 0) / 1e6 for pid in sorted(workers(process)) or [process.pid]
                }
                for pid, size in now.items():
                    sizes.setdefault(pid, []).append(size)
                print(
                    f"{passed + EVERY:5.0f} s  " + "  ".join(f"{size:6.1f}" for size in now.values()),
                    flush=True,
                )
        finally:
            over.set()
            for caller in callers:
                caller.join()
        answers = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    requests = [line for line in answers.splitlines() if line.startswith("vae_requests_total")]
    print(f"{sum(float(line.split()[-1]) for line in requests):,.0f} requests")
    for pid, measured in sizes.items():
        third = len(measured) // 3 or 1
        first, last = np.median(measured[third : 2 * third] or measured), np.median(measured[-third:])
        print(f"worker {pid}: peak {max(measured):.1f} MB, middle third {first:.1f}, last third {last:.1f}")


def call(url: str, seed: int, over: threading.Event) -> None:
    rng = np.random.default_rng(seed)
    with Client(url) as client, httpx.Client(base_url=url, timeout=60) as http:
        photo = http.get("/sample?n=64", headers={"Accept": "image/png"}).content
        size = len(client.encode(client.sample(1).images).mean[0])
        while not over.is_set():
            n = int(rng.choice([1, 1, 1, 2, 7, 32, 64, 200]))
            match rng.integers(6):
                case 0:
                    client.encode(client.sample(n).images)
                case 1:
                    client.decode(rng.standard_normal((n, size)).astype(np.float32))
                case 2:
                    client.reconstruct([photo] * min(n, 7))
                case 3:
                    client.sample(n, seed=n)
                case 4:
                    http.get(
                        f"/sample?n={n}", headers={"Accept": str(rng.choice(["image/jpeg", "image/png"]))}
                    )
                case 5:
                    body = {"latents": rng.standard_normal((n, size)).tolist()}
                    http.post("/decode", json=body)


if __name__ == "__main__":
    main()
