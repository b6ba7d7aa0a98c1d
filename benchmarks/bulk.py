"""Measures the bulk client against the rate of the service: `python -m benchmarks.bulk`.

`vae-client encode` of 20,000 small PNG files alternates with as many images as arrays (256 per request, the
fastest way), on one `vae-serve` of the reference network. The client's peak memory is measured for a quarter
of the files and for all. `--kills N` instead kills the client N times at random moments, restarts it each
time, and compares the output with an undisturbed run.
"""

import argparse
import http.client
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tests.live import serving

FILES = 20_000
# Small parts, so that there are many moments for a kill.
CLIENT = """
from vaeserve.client.__main__ import main
from vaeserve.client.bulk import runner
runner.PART_ROWS = {rows}
main()
"""


def write_pngs(folder: Path, count: int, side: int = 28) -> None:
    """Write images that compress like digits: a blurred blob, 28×28, about 400 bytes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for index in range(count):
        if index % 1000 == 0:
            (folder / f"{index // 1000:04d}").mkdir(parents=True, exist_ok=True)
        a, b, size = rng.uniform(side / 4, 3 * side / 4, 3)
        blob = 255 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / size)
        pixels = np.where(blob > 16, blob + rng.normal(0, 8, blob.shape), 0).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index // 1000:04d}" / f"{index:06d}.png")


def encode(url: str, source: Path | str, output: Path, *, concurrency: int = 4) -> tuple[float, float]:
    """Run the command once. Returns seconds, and the client's peak resident memory in MB."""
    command = [Path(sys.executable).with_name("vae-client"), "encode", source, "-o", output, "--url", url]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--concurrency", str(concurrency)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"vae-client ended with {process.returncode}"
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def encode_arrays(url: str, images: int, *, side: int = 28, rows: int = 256, connections: int = 4) -> float:
    """Encode as many images sent as npy and returned as npz. Returns seconds."""
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 256, (rows, side, side, 1), dtype=np.uint8))
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npz"}

    def ask(requests: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        for _ in range(requests):
            connection.request("POST", "/encode?return=mean,logvar", file.getvalue(), headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(ask, [images // rows // connections] * connections))
    done = images // rows // connections * connections * rows
    return (time.perf_counter() - started) * images / done


Moment = Callable[[Path], bool]  # called with the folder of parts; true at the moment for a kill


def after_parts(count: int) -> Moment:
    return lambda parts: len(list(parts.glob("*-*.npz"))) >= count


def while_listing(parts: Path) -> bool:
    return (parts / "entries.jsonl.new").exists()


def while_merging(parts: Path) -> bool:
    return parts.with_name(f"{parts.stem}.new").exists()


def kill_and_repeat(
    url: str, job: Sequence[Path | str], output: Path, moments: Sequence[Moment], *, part_rows: int
) -> list[int]:
    """Start the client with `job`, kill and restart it at each of the moments, then let it finish.

    Returns how many images were done at each kill. A run that finishes before its moment does not count, and
    its output is removed.
    """
    parts = output.with_name(f"{output.name}.parts")
    command = [
        sys.executable,
        "-c",
        CLIENT.format(rows=part_rows),
        *job,
        "-o",
        output,
        "--url",
        url,
    ]
    done = []
    for moment in moments:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not moment(parts):
                time.sleep(0.0005)
            process.kill()
        if process.returncode == 0:
            shutil.rmtree(output) if output.is_dir() else output.unlink()
            continue
        stops = [int(path.stem[-10:]) for path in parts.glob("*-*.npz")]
        done.append(max(stops, default=0))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert not parts.exists()
    return done


def compare(output: Path, undisturbed: Path) -> None:
    """Assert that both outputs have the same images in the same order, each once, with the same latents."""
    with np.load(output) as found, np.load(undisturbed) as expected:
        assert len(set(expected["path"])) == len(expected["path"])
        np.testing.assert_array_equal(found["path"], expected["path"])
        for name in ("mean", "logvar"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def rates(url: str, folder: Path, work: Path, rounds: int) -> None:
    output = work / "embeddings.parquet"
    ratios = []
    print(f"{FILES:,} images    npy images/s   bulk images/s   ratio   client's memory")
    for _ in range(rounds):
        npy = FILES / encode_arrays(url, FILES)
        seconds, memory = encode(url, folder, output)
        ratios.append(FILES / seconds / npy)
        print(f"{npy:>26,.0f}{FILES / seconds:>16,.0f}{ratios[-1]:>8.2f}{memory:>14.0f} MB", flush=True)
    _, quarter = encode(url, f"{folder}/000[0-4]", output)
    print(f"median ratio {median(ratios):.2f}; {FILES // 4:,} images took {quarter:.0f} MB")


def kills(url: str, folder: Path, work: Path, count: int) -> None:
    source = f"{folder}/000[0-4]"
    encode(url, source, work / "whole.npz")
    rng = random.Random(0)
    moments = [while_listing, while_merging]
    moments += [after_parts(rng.randrange(1, 5000 // 128)) for _ in range(count - len(moments))]
    rng.shuffle(moments)
    done = kill_and_repeat(url, ["encode", source], work / "killed.npz", moments, part_rows=128)
    compare(work / "killed.npz", work / "whole.npz")
    print(
        f"killed {len(done)} times, with {', '.join(map(str, done))} of 5000 done: every image is there once"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, help="kill the client this often instead of measuring it")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # In another process, because it imports torch, and a child's peak memory starts at its parent's.
        publish = [sys.executable, "-m", "benchmarks.reference", "--models", work / "models"]
        subprocess.run(publish, check=True, stdout=subprocess.DEVNULL)
        write_pngs(work / "files", FILES)
        with serving(work / "models", "--no-access-log") as url:
            if options.kills:
                kills(url, work / "files", work, options.kills)
            else:
                rates(url, work / "files", work, options.rounds)


if __name__ == "__main__":
    main()
