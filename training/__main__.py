"""`vae-train`: fit a model and publish it, evaluate a bundle, export a checkpoint."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from service.runtime.bundle import Metric

# torch, scikit-learn and matplotlib are imported inside the commands: `--help` must not take seconds.

INTERRUPTED = 130  # what a shell reports after Ctrl-C: the run is saved, but no model was published

app = typer.Typer(
    name="vae-train",
    help="Train a variational autoencoder on images and publish it as a bundle that vae-serve serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
DEFAULTS = TrainConfig()

Models = Annotated[Path, typer.Option(help="Model repository to publish into.")]


class FitChoice(StrEnum):
    cover = "cover"
    contain = "contain"
    stretch = "stretch"


class LikelihoodChoice(StrEnum):
    auto = "auto"
    bernoulli = "bernoulli"
    gaussian = "gaussian"


@app.command()
def fit(
    data: Annotated[str, typer.Option(help="digits (built in) or mnist.")] = DEFAULTS.data,
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: the data's]")] = None,
    models: Models = Path("models"),
    run: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and metrics. [default: runs/<name>-<time>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run.")] = False,
    epochs: Annotated[int | None, typer.Option(help="[default: by the size of the data]")] = None,
    batch: Annotated[int, typer.Option(help="Images per step.")] = DEFAULTS.batch,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    seed: Annotated[int, typer.Option(help="Decides weights, order and noise.")] = DEFAULTS.seed,
    latent: Annotated[
        int | None, typer.Option(help="Latent dimensions. [default: by the image size]")
    ] = None,
    width: Annotated[
        int, typer.Option(help="The one dial of the network: channels of its first stage.")
    ] = DEFAULTS.width,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="[default: the data's]")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3. [default: the data's]")] = None,
    fit: Annotated[
        FitChoice, typer.Option(help="How images of another aspect ratio are brought to size.")
    ] = FitChoice.contain,
    likelihood: Annotated[
        LikelihoodChoice, typer.Option(help="auto: bernoulli for black-and-white images, else gaussian.")
    ] = LikelihoodChoice.auto,
    beta: Annotated[float, typer.Option(help="Weight of the rate; 1 is the ELBO.")] = DEFAULTS.beta,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = DEFAULTS.device,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="torch.compile; pays on long runs.")
    ] = DEFAULTS.compile,
) -> None:
    """Train, evaluate and publish. Ctrl-C saves; `--resume` goes on as if nothing had happened."""
    with _sentences():
        from training import trainer
        from training.data import load
        from training.release import release

        if resume:
            if run is None:
                raise ConfigError("--resume needs --run, the folder of the run to go on with")
            path = run / "config.json"
            if not path.is_file():
                raise ConfigError(f"{path} is not there, so there is no run to go on with in {run}")
            config = TrainConfig.from_json(path.read_text())
        else:
            config = TrainConfig(
                data=data,
                name=name,
                epochs=epochs,
                batch=batch,
                lr=lr,
                seed=seed,
                latent=latent,
                width=width,
                image_size=_size(image_size),
                channels=channels,
                fit=fit.value,
                likelihood=likelihood.value,
                beta=beta,
                device=device,
                compile=compile,
            )
        images = load(config.data)
        run = run or Path("runs") / f"{config.name or images.name}-{datetime.now():%Y%m%d-%H%M%S}"
        _say(f"{images.name}: {len(images.pixels):,} images of {'×'.join(map(str, images.shape))}; run {run}")
        result = trainer.fit(config, images, run, resume=resume)
        if not result.finished:
            _say(f"not finished; go on with: vae-train fit --run {run} --models {models} --resume")
            raise typer.Exit(INTERRUPTED)
        bundle = release(result.checkpoint, images, models, result.history, _say)
        _print_metrics(bundle)
        _say(
            f"published {bundle}\n\nnext:\n"
            f"  vae-serve --models {models} --default-model {bundle.parent.name}\n"
            "  curl 'localhost:8000/sample?n=64&seed=7' -H 'Accept: image/png' -o samples.png\n"
            f"  open {bundle / 'README.md'}"
        )


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, models/<name>/<version>.")],
    data: Annotated[str, typer.Option(help="The data to evaluate on.")],
    seed: Annotated[int, typer.Option(help="Draws z ~ q(z|x).")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="[default: evaluation-<name>-<version>.json]")
    ] = None,
) -> None:
    """Compute a bundle's figures again from its graphs. The bundle itself is never changed."""
    with _sentences():
        from service.runtime.cpus import usable_cpus
        from service.runtime.repository import open_engine
        from training.data import load
        from training.evaluate import evaluate as run_evaluation

        engine = open_engine(bundle, threads=usable_cpus())
        manifest, images = engine.manifest, load(data)
        expected = (manifest.image.height, manifest.image.width, manifest.image.channels)
        if images.shape != expected:
            raise ConfigError(
                f"{manifest.reference} takes images of {'×'.join(map(str, expected))}, "
                f"{data} has {'×'.join(map(str, images.shape))}"
            )
        metrics = run_evaluation(engine, images, seed=seed).metrics
        path = output or Path(f"evaluation-{manifest.name}-{manifest.version}.json")
        record = {
            "model": manifest.reference,
            "data": {"name": images.name, "digest": images.digest},
            "metrics": {key: metric.model_dump(exclude_none=True) for key, metric in metrics.items()},
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
        _print_table(metrics)
        _say(f"written to {path}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder runs/<run>/checkpoints/step-<n>.")],
    models: Models = Path("models"),
) -> None:
    """Export, evaluate and publish a checkpoint of any run, finished or not."""
    with _sentences():
        from training import checkpoint as checkpoints
        from training.data import load
        from training.release import release

        state = checkpoints.read_state(checkpoint)
        history = [
            line
            for line in map(json.loads, (checkpoint.parents[1] / "metrics.jsonl").read_text().splitlines())
            if line["step"] <= state["step"]
        ]
        bundle = release(checkpoint, load(state["config"]["data"]), models, history, _say)
        _print_metrics(bundle)
        _say(f"published {bundle}")


def main() -> None:
    # Before torch is imported. OpenMP's threads wait for each other in spins, which on a machine that has
    # other work makes training three times slower; sleeping costs nothing measurable where it has none.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can mend ends in one sentence and exit status 1, not in a traceback."""
    from service.runtime.bundle import BundleError
    from training.checkpoint import CheckpointError
    from training.data import DataError
    from training.export import ExportError
    from training.trainer import TrainingError

    try:
        yield
    except (
        BundleError,
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        TrainingError,
        OSError,
    ) as error:
        _say(f"vae-train: {error}")
        raise typer.Exit(1) from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--image-size {text} is not a size; write HxW, for instance 64x48")
    return int(height), int(width)


def _print_metrics(bundle: Path) -> None:
    from service.runtime.bundle import read_bundle

    _print_table(read_bundle(bundle, verify=False).manifest.metrics)


def _print_table(metrics: "dict[str, Metric]") -> None:
    for key, metric in metrics.items():
        error = f" ± {metric.se:.2g}" if metric.se is not None else ""
        _say(f"  {key:18s} {metric.value:.5g}{error}  (N = {metric.n:,})")


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
