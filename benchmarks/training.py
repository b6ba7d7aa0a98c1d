"""Compares the speed of `vae-train` with that of pythae's trainer, on the same network, images and threads.

    python -m venv /somewhere && /somewhere/bin/pip install torch==2.13.0 pythae -e '.[train]'
    python -m benchmarks.training --pythae /somewhere/bin/python

1. Steady state: images/s of training steps, medians and ratios. Every trainer runs in a process of its own
   and waits for its turn in its step callback, so the rounds are interleaved: A B C A B C …
2. Wall time of 1, 5 and 20 epochs on a subset, with each trainer's own validation, checkpoints and
   compilation.

The network is that of `benchmarks.reference`; the images are those of MNIST if VAESERVE_DATA has them, else
noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, LATENT = 128, 32
EPOCHS = (1, 5, 20)
WARM_UP, ROUND = 10, 25  # steps
OURS: dict[str, dict[str, Any]] = {
    "ours": {},  # the defaults: bfloat16 if the CPU has it, compiled if the run is long enough
    "float32": {"precision": "float32", "compile": False},
    "compiled": {"compile": True},
}


# --- one trainer, in a process of its own -------------------------------------------------------------------


def images(count: int) -> Any:
    """Images uint8 [count, 28, 28, 1]."""
    import numpy as np

    from training.data.load import load
    from training.data.sources import data_folder

    if (data_folder() / "mnist").is_dir():
        return load("mnist").pixels[:count]
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)


def train_ours(count: int, epochs: int, at_step: Callable[[], None], folder: Path, **settings: Any) -> None:
    from benchmarks.reference import build
    from training.config import TrainConfig
    from training.data.images import Images, from_arrays
    from training.fit.trainer import fit
    from training.model.networks import VAE, Shape

    class Steps:
        def step(self, *figures: object) -> None:
            at_step()

        def evaluated(self, line: object) -> None: ...

        def note(self, text: str) -> None: ...

    def reference(config: TrainConfig) -> VAE:
        network = build().train()
        return VAE(Shape(28, 28, 1, LATENT, 32), network.encoder, network.decoder)

    data: Images = from_arrays("images", images(count))
    config = TrainConfig(batch=BATCH, latent=LATENT, epochs=epochs, patience=0, **settings)
    fit(config, data, folder, progress=Steps(), build=reference)


def train_pythae(count: int, epochs: int, at_step: Callable[[], None], folder: Path) -> None:
    import logging

    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    from benchmarks.reference import build
    from training.data.images import from_arrays

    logging.disable(logging.INFO)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = build().train().encoder

        def forward(self, x: Any) -> Any:
            mean, logvar = self.network(x)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = build().train().decoder

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    class Steps(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **more: Any) -> None:
            at_step()

    data = from_arrays("images", images(count))
    train, validation = (
        torch.from_numpy(data.pixels[rows]).permute(0, 3, 1, 2).contiguous().float() / 255
        for rows in (data.split.train, data.split.validation)
    )
    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT), Encoder(), Decoder())
    settings = BaseTrainerConfig(
        output_dir=str(folder),
        num_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=1e-3,
        no_cuda=True,
    )
    TrainingPipeline(model=model, training_config=settings)(train, validation, callbacks=[Steps()])


def worker(name: str, mode: str, count: int) -> None:
    """Train, and print a line of JSON for each round (mode "steady") or for the run (mode: its epochs)."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    images(count)  # decoded, and torch imported, before any clock starts
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
        if mode == "steady" and steps >= WARM_UP and (steps - WARM_UP) % ROUND == 0:
            if steps > WARM_UP:
                print(json.dumps({"speed": ROUND * BATCH / (time.perf_counter() - start)}), flush=True)
            turn()

    def run(epochs: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            if name == "pythae":
                train_pythae(count, epochs, at_step, Path(folder))
            else:
                train_ours(count, epochs, at_step, Path(folder), **OURS[name])
            return time.perf_counter() - began

    if mode == "steady":
        run(2)  # 750 steps of 48 000 images: no evaluation before step 375
    else:
        turn()
        print(json.dumps({"seconds": run(int(mode))}), flush=True)


# --- the comparison -----------------------------------------------------------------------------------------


class Trainer:
    """A worker process that trains one round at a time."""

    def __init__(self, name: str, python: str, mode: str, count: int, threads: int) -> None:
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # as vae-train sets it
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONWARNINGS": "ignore",
        }
        self.quiet = subprocess.DEVNULL if name == "pythae" else None  # its progress bars
        command = [python, "-m", "benchmarks.training", "--worker", name, mode, "--images", str(count)]
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


def steady(pythons: dict[str, str], count: int, threads: int, rounds: int) -> dict[str, float]:
    """Median images/s of each trainer over interleaved rounds."""
    trainers = [Trainer(name, python, "steady", count, threads) for name, python in pythons.items()]
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
        trainer = Trainer(name, python, str(epochs), count, threads)
        trainer.read("ready")
        trainer.go()
        seconds[name] = trainer.read("seconds")
        trainer.end()
    return seconds


def show_ratios(figures: dict[str, float], better: Callable[[float, float], float]) -> str:
    if "pythae" not in figures:
        return ""
    return "  ".join(f"{n} ×{better(v, figures['pythae']):.2f}" for n, v in figures.items() if n != "pythae")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pythae", metavar="PYTHON", help="interpreter of an environment with pythae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--images", type=int, default=4000, help="for wall time; the steady state uses 60 000"
    )
    parser.add_argument("--epochs", type=int, nargs="*", default=EPOCHS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.images)
        return
    pythons = dict.fromkeys(OURS, sys.executable)
    if arguments.pythae:
        pythons["pythae"] = arguments.pythae
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.threads} thread(s), batch {BATCH}")
    print(f"images/s of {ROUND} steps, rounds interleaved:", flush=True)
    speeds = steady(pythons, 60_000, arguments.threads, arguments.rounds)
    print("  against pythae:", show_ratios(speeds, lambda ours, theirs: ours / theirs), flush=True)
    for epochs in arguments.epochs:
        seconds = wall(pythons, arguments.images, arguments.threads, epochs)
        shown = "  ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        print(f"{epochs} epochs of {arguments.images} images: {shown}")
        print(
            "  pythae's time over ours:", show_ratios(seconds, lambda ours, theirs: theirs / ours), flush=True
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
