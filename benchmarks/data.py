"""Measures the peak memory of loading and evaluating a million images of 64×64×1: at most 2 GB.

    python -m benchmarks.data make FOLDER --images 1000000     # the synthetic set, 4 GB of disk
    python -m benchmarks.data measure FOLDER                   # prints one JSON line

`measure` decodes the set into a memory-mapped file (under VAESERVE_DATA), splits and hashes it, trains for
twenty seconds, exports with the fitted prior, evaluates and draws. Linux only: it reads /proc. Only anonymous
memory counts, because the system can reclaim pages of mapped files at any time.
"""

import argparse
import io
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CLASSES, PER_FOLDER = 64, 10, 1000


def make(folder: Path, images: int) -> None:
    """Write random images as PNG files in `CLASSES` class folders with sub-folders."""

    def one_folder(start: int) -> None:
        rng = np.random.default_rng(start)
        home = folder / f"class-{start // PER_FOLDER % CLASSES}" / f"{start // PER_FOLDER:04d}"
        home.mkdir(parents=True, exist_ok=True)
        for number in range(start, min(start + PER_FOLDER, images)):
            small = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file, "PNG", compress_level=1)
            (home / f"{number:07d}.png").write_bytes(file.getvalue())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one_folder, range(0, images, PER_FOLDER)))


class Peak(threading.Thread):
    """The largest anonymous memory (RssAnon) of this process, sampled ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kilobytes = 0
        self.start()

    def run(self) -> None:
        while True:
            self.kilobytes = max(self.kilobytes, anonymous())
            time.sleep(0.1)

    def take(self) -> float:
        """The peak since the last call, in GB."""
        peak, self.kilobytes = max(self.kilobytes, anonymous()), 0
        return round(peak * 1024 / 1e9, 3)


def anonymous() -> int:
    """Memory of this process that no file backs, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(folder: Path, work: Path) -> dict[str, object]:
    from training.config import TrainConfig
    from training.data.load import load
    from training.evaluation.evaluate import evaluate
    from training.fit import trainer
    from training.publishing.export import export
    from training.publishing.figures import draw_all
    from vaeserve.bundle.engine import Engine

    peak = Peak()
    result: dict[str, object] = {}

    def done(what: str, start: float) -> None:
        result[what] = {"seconds": round(time.monotonic() - start, 1), "peak_anonymous_gb": peak.take()}
        print(what, result[what], flush=True)

    start = time.monotonic()
    images = load(str(folder), say=print)
    done("load", start)
    result["images"], result["shape"] = len(images.pixels), list(images.shape)
    start = time.monotonic()
    assert not images.binary
    # Narrow, to be fast: the memory measured here depends on the images, not on the width.
    config = TrainConfig(data=str(folder), width=8, latent=16, epochs=1, device="cpu", compile=False)
    run = trainer.fit(config, images, work / "run", stop_after=20)
    done("twenty seconds of training", start)
    start = time.monotonic()
    (work / "draft").mkdir(parents=True)
    draft = export(run.checkpoint, images, work / "draft")
    done("export and prior", start)
    start = time.monotonic()
    engine = Engine(draft.bundle())
    evaluation = evaluate(engine, images, iwae_k=10, iwae_n=100)
    done("evaluate", start)
    result["n"] = {name: metric.n for name, metric in evaluation.metrics.items()}
    start = time.monotonic()
    draw_all(engine, images, images.split.test, evaluation.means, evaluation.kl)
    done("pictures", start)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--images", type=int, default=1_000_000)
    measurer = commands.add_parser("measure")
    measurer.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.folder, arguments.images)
    else:
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(measure(arguments.folder, Path(work))))


if __name__ == "__main__":
    main()
