"""Compares the speed of `vae-train` with that of pythae's trainer, on the same network, images and threads.

    python -m venv /somewhere && /somewhere/bin/pip install torch==2.13.0 pythae -e '.[train]'
    python -m benchmarks.training --pythae /somewhere/bin/python
    python -m benchmarks.training --pythae /somewhere/bin/python --size 64x64x3 --threads 2

1. Steady state: images/s of training steps, medians and ratios. Every trainer runs in a process of its own
   and waits for its turn in its step callback, so the rounds are interleaved: A B C A B C …
2. Wall time of 1, 5 and 20 epochs on a subset, with each trainer's own validation, checkpoints and
   compilation.

At 28×28×1 the network is that of `benchmarks.reference`, and the images are those of MNIST if VAESERVE_DATA
has them. At another --size it is the network that `vae-train` builds, with 128 latents, on noise; wall time
is not measured.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 128
REFERENCE = (28, 28, 1)
EPOCHS = (1, 5, 20)
WARM_UP = 10  # steps
Size = tuple[int, int, int]
OURS: dict[str, dict[str, Any]] = {
    "ours": {},  # the defaults: bfloat16 if the CPU has it, compiled if the run is long enough
    "float32": {"precision": "float32", "compile": False},
    "compiled": {"compile": True},
}


# --- one trainer, in a process of its own -------------------------------------------------------------------


def a_round(size: Size) -> int:
    """Steps of a round: about the same time at each size."""
    return 25 if size == REFERENCE else max(2, 100_000 // math.prod(size))


def images(count: int, size: Size) -> Any:
    """Images uint8 [count, *size]."""
    import numpy as np

    from training.data.load import load
    from training.data.sources import data_folder

    if size == REFERENCE and (data_folder() / "mnist").is_dir():
        return load("mnist").pixels[:count]
    return np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)


def network(size: Size) -> Any:
    """The network that all trainers train at this size: a `VAE`."""
    from benchmarks.reference import build
    from training.config import TrainConfig
    from training.model import networks

    if size == REFERENCE:
        reference = build().train()
        return networks.VAE(networks.Shape(28, 28, 1, 32, 32), reference.encoder, reference.decoder)
    return networks.build(TrainConfig(image_size=size[:2], channels=size[2], latent=128, name="noise"))


def train_ours(
    count: int, size: Size, epochs: int, at_step: Callable[[], None], folder: Path, **settings: Any
) -> None:
    from training.config import TrainConfig
    from training.data.images import Images, from_arrays
    from training.fit.trainer import fit

    class Steps:
        def step(self, *figures: object) -> None:
            at_step()

        def evaluated(self, line: object) -> None: ...

        def note(self, text: str) -> None: ...

    data: Images = from_arrays("images", images(count, size))
    latent = network(size).shape.latent
    config = TrainConfig(batch=BATCH, latent=latent, epochs=epochs, patience=0, augment="none", **settings)
    fit(config, data, folder, progress=Steps(), build=lambda config: network(size))


def train_pythae(count: int, size: Size, epochs: int, at_step: Callable[[], None], folder: Path) -> None:
    import logging

    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    from training.data.images import from_arrays
    from training.model.networks import as_pixels

    logging.disable(logging.INFO)
    whole = network(size)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = whole.encoder

        def forward(self, x: Any) -> Any:
            mean, logvar = self.network(x)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = whole.decoder

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    class Steps(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **more: Any) -> None:
            at_step()

    data = from_arrays("images", images(count, size))
    train, validation = (
        as_pixels(torch.from_numpy(data.pixels[rows])).contiguous()
        for rows in (data.split.train, data.split.validation)
    )
    shape = VAEConfig(input_dim=(size[2], *size[:2]), latent_dim=whole.shape.latent)
    model = VAE(shape, Encoder(), Decoder())
    settings = BaseTrainerConfig(
        output_dir=str(folder),
        num_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=1e-3,
        no_cuda=True,
    )
    TrainingPipeline(model=model, training_config=settings)(train, validation, callbacks=[Steps()])


def worker(name: str, mode: str, count: int, size: Size) -> None:
    """Train, and print a line of JSON for each round (mode "steady") or for the run (mode: its epochs)."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    images(count, size)  # decoded, and torch imported, before any clock starts
    steps, start = 0, 0.0

    def turn() -> None:
        """Wait for a line from the driver; exit at the end of its input."""
        nonlocal start
        print(json.dumps({"ready": True}), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        start = time.perf_counter()

    def at_step() -> None:
        nonlocal steps
        steps += 1
        if mode == "steady" and steps >= WARM_UP and (steps - WARM_UP) % a_round(size) == 0:
            if steps > WARM_UP:
                speed = a_round(size) * BATCH / (time.perf_counter() - start)
                print(json.dumps({"speed": speed}), flush=True)
            turn()

    def run(epochs: int, **more: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            if name == "pythae":
                train_pythae(count, size, epochs, at_step, Path(folder))
            else:
                train_ours(count, size, epochs, at_step, Path(folder), **OURS[name], **more)
            return time.perf_counter() - began

    if mode == "steady":
        run(2, evaluate_every=10**9)
    else:
        turn()
        print(json.dumps({"seconds": run(int(mode))}), flush=True)


# --- the comparison -----------------------------------------------------------------------------------------


class Trainer:
    """A worker process that trains one round at a time."""

    def __init__(self, name: str, python: str, mode: str, count: int, size: Size, threads: int) -> None:
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # as vae-train sets it
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONWARNINGS": "ignore",
        }
        self.quiet = subprocess.DEVNULL if name == "pythae" else None  # its progress bars
        command = [python, "-m", "benchmarks.training", "--worker", name, mode, "--images", str(count)]
        command += ["--size", "x".join(map(str, size))]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.quiet,
            text=True,
        )

    def read(self, key: str) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{") and key in (answer := json.loads(line)):
                return answer[key]
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def steady(pythons: dict[str, str], count: int, size: Size, threads: int, rounds: int) -> dict[str, float]:
    """Median images/s of each trainer over interleaved rounds."""
    trainers = [Trainer(name, python, "steady", count, size, threads) for name, python in pythons.items()]
    speeds: dict[str, list[float]] = {name: [] for name in pythons}
    for trainer in trainers:  # one after the other, through warm-up and compilation
        trainer.read("ready")
    for _ in range(rounds):
        for trainer in trainers:
            trainer.go()
            speeds[trainer.name].append(trainer.read("speed"))
    for trainer in trainers:
        trainer.end()
    for name, values in speeds.items():
        print(
            f"  {name:10s}",
            *(f"{value:6.0f}" for value in values),
            f"  median {statistics.median(values):6.0f}",
        )
    return {name: statistics.median(values) for name, values in speeds.items()}


def wall(pythons: dict[str, str], count: int, threads: int, epochs: int) -> dict[str, float]:
    """Seconds of a whole run of `epochs`, one trainer after the other."""
    seconds = {}
    for name, python in pythons.items():
        trainer = Trainer(name, python, str(epochs), count, REFERENCE, threads)
        trainer.read("ready")
        trainer.go()
        seconds[name] = trainer.read("seconds")
        trainer.end()
    return seconds


def show_ratios(figures: dict[str, float], better: Callable[[float, float], float]) -> str:
    if "pythae" not in figures:
        return ""
    return "  ".join(f"{n} ×{better(v, figures['pythae']):.2f}" for n, v in figures.items() if n != "pythae")


def _size(text: str) -> Size:
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pythae", metavar="PYTHON", help="interpreter of an environment with pythae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--images", type=int, default=4000, help="for wall time; the steady state uses 60 000"
    )
    parser.add_argument("--epochs", type=int, nargs="*", default=EPOCHS)
    parser.add_argument("--size", type=_size, default=REFERENCE, metavar="HxWxC")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.images, arguments.size)
        return
    size = arguments.size
    pythons = dict.fromkeys(OURS, sys.executable)
    if arguments.pythae:
        pythons["pythae"] = arguments.pythae
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.threads} thread(s), batch {BATCH}, images {size}")
    print(f"images/s of {a_round(size)} steps, rounds interleaved:", flush=True)
    steps = WARM_UP + (arguments.rounds + 1) * a_round(size)  # within the first epoch of 80 % of the images
    count = 60_000 if size == REFERENCE else 2 * BATCH * steps
    speeds = steady(pythons, count, size, arguments.threads, arguments.rounds)
    print("  against pythae:", show_ratios(speeds, lambda ours, theirs: ours / theirs), flush=True)
    for epochs in arguments.epochs if size == REFERENCE else ():
        seconds = wall(pythons, arguments.images, arguments.threads, epochs)
        shown = "  ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        print(f"{epochs} epochs of {arguments.images} images: {shown}")
        print(
            "  pythae's time over ours:", show_ratios(seconds, lambda ours, theirs: theirs / ours), flush=True
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
