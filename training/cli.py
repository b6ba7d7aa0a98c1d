"""The command `vae-train`: trains, evaluates, exports, quantizes and reports."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.config import ConfigError, TrainConfig
from training.flags import with_settings

if TYPE_CHECKING:
    from training.data.images import Images
    from vaeserve.bundle.manifest import ImageSpec, Metric

# torch, scikit-learn and matplotlib are imported inside the commands: `--help` must not take seconds.

INTERRUPTED = 130  # the exit status after Ctrl-C: the run is saved, but no model is published

app = typer.Typer(
    name="vae-train",
    help="Train a variational autoencoder on images and publish it as a bundle that vae-serve serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
DEFAULTS = TrainConfig()

IwaeK = Annotated[int, typer.Option(min=1, help="Samples per image of the importance-weighted bound.")]
IwaeN = Annotated[int, typer.Option(min=1, help="Test images of that bound.")]
MemoryLimit = Annotated[
    int, typer.Option(metavar="MB", help="Above this size, decoded images are kept in a memory-mapped file.")
]
BundleFolder = Annotated[Path, typer.Argument(help="Folder of a bundle, models/<name>/<version>.")]
TrainedOn = Annotated[str, typer.Option(help="The data that it was trained on.")]
Models = Annotated[Path, typer.Option(help="Model repository to publish into.")]


@app.command()
@with_settings
def fit(
    settings: dict[str, Any],
    models: Models = Path("models"),
    run: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and metrics. [default: runs/<name>-<time>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --run.")] = False,
    stop_after: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Save and stop then; --resume continues.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the metrics to <run>/tensorboard.")
    ] = False,
) -> None:
    """Train, evaluate and publish. Ctrl-C saves the run; `--resume` continues it exactly, and extends it with
    more `--epochs`.

    For several processes: `torchrun --nproc-per-node N -m -- training fit --run DIR …`, which resumes the
    run in DIR automatically.
    """
    with _sentences():
        from training.data.images import ImageTarget
        from training.data.load import load
        from training.fit import distributed, trainer, warm_start
        from training.publishing import report
        from training.publishing.publish import publish_checkpoint

        ranks = distributed.join()
        found = None
        if resume or (ranks.launched and run):  # torchrun repeats the command after a crash
            found = ranks.share(lambda: _config(run, needed=resume))
        resume = found is not None
        asked = warm_start.inherit(TrainConfig(**_absolute(settings)))
        config = found or asked
        source = settings.get("data", config.data)
        with ranks.in_turn():
            images = load(source, ImageTarget.of(config), _say if ranks.first else lambda text: None)
        if run is None:
            run = Path("runs") / (config.name or images.name)
            if not ranks.launched:
                run = run.with_name(f"{run.name}-{datetime.now():%Y%m%d-%H%M%S}")
            resume = ranks.restarts > 0  # never resume what another command started
        if ranks.first:
            shape = "×".join(map(str, images.shape))
            _say(f"{images.name}: {len(images.pixels):,} images of {shape}; run {run}")
            _check_name(config.name or images.name)
            if resume or not (run / "config.json").exists():
                _write_skipped(run, images.skipped)
        seconds = None if stop_after is None else 60 * stop_after
        result = trainer.fit(
            asked, images, run, resume=resume, stop_after=seconds, tensorboard=tensorboard, ranks=ranks
        )
        distributed.leave(ranks)
        if not ranks.first:
            return
        if not result.finished:
            _say(f"not finished; continue with: vae-train fit --run {run} --models {models} --resume")
            raise typer.Exit(0 if ranks.launched else INTERRUPTED)  # or torchrun would restart it
        bundle = publish_checkpoint(result.checkpoint, images, models, result.history, _say)
        _print_metrics(bundle)
        _say(
            f"published {bundle}\nreport    {report.write(run)}\n\nnext:\n"
            f"  vae-serve --models {models} --default-model {bundle.parent.name}\n"
            "  curl 'localhost:8000/sample?n=64&seed=7' -H 'Accept: image/png' -o samples.png\n"
            f"  open {bundle / 'README.md'}"
        )


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Annotated[str, typer.Option(help="The data to evaluate on.")],
    seed: Annotated[int, typer.Option(help="Draws z ~ q(z|x).")] = 0,
    iwae_k: IwaeK = 100,
    iwae_n: IwaeN = 500,
    memory_limit: MemoryLimit = DEFAULTS.memory_limit,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="[default: evaluation-<name>-<version>.json]")
    ] = None,
) -> None:
    """Compute the metrics of a bundle from its graphs. The bundle itself is never changed."""
    with _sentences():
        from training.evaluation.evaluate import evaluate as run_evaluation
        from training.evaluation.parts import Parts
        from vaeserve.bundle.atomic import write_atomically
        from vaeserve.bundle.cpus import usable_cpus
        from vaeserve.bundle.repository import open_engine

        engine = open_engine(bundle, threads=usable_cpus())
        manifest = engine.manifest
        if manifest.likelihood is None:
            raise ConfigError(f"{manifest.reference} has no likelihood in its manifest, so it has no ELBO")
        images = _images_like(manifest.image, data, memory_limit)
        parts = Parts(_say, done="evaluated")
        evaluation = run_evaluation(engine, images, parts, seed=seed, iwae_k=iwae_k, iwae_n=iwae_n)
        metrics = evaluation.metrics
        path = output or Path(f"evaluation-{manifest.name}-{manifest.version}.json")
        record = {
            "model": manifest.reference,
            "data": {"name": images.name, "digest": images.digest},
            "metrics": {key: metric.model_dump(exclude_none=True) for key, metric in metrics.items()},
            "kl": evaluation.kl.round(6).tolist(),
        }
        write_atomically(path, json.dumps(record, indent=2) + "\n")
        _print_table(metrics)
        _say(f"written to {path}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder runs/<run>/checkpoints/step-<n>.")],
    models: Models = Path("models"),
    iwae_k: IwaeK = 100,
    iwae_n: IwaeN = 500,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also publish an int8 version as <name>-int8.")
    ] = False,
) -> None:
    """Export, evaluate and publish a checkpoint of any run, finished or not."""
    with _sentences():
        from training.data.images import ImageTarget
        from training.data.load import load
        from training.fit import checkpoint as checkpoints
        from training.publishing.publish import publish_checkpoint, publish_int8

        state = checkpoints.read_state(checkpoint)
        history = [
            line
            for line in map(json.loads, (checkpoint.parents[1] / "metrics.jsonl").read_text().splitlines())
            if line["step"] <= state["step"]
        ]
        config = TrainConfig.from_dict(state["config"])
        images = load(config.data, ImageTarget.of(config), _say)
        bundle = publish_checkpoint(checkpoint, images, models, history, _say, iwae_k=iwae_k, iwae_n=iwae_n)
        _print_metrics(bundle)
        _say(f"published {bundle}")
        if int8:
            quantized = publish_int8(bundle, images, models, _say)
            _print_metrics(quantized)
            _say(f"published {quantized}")


@app.command()
def quantize(
    bundle: BundleFolder,
    data: TrainedOn,
    models: Models = Path("models"),
    memory_limit: MemoryLimit = DEFAULTS.memory_limit,
) -> None:
    """Publish an int8 version of a bundle as <name>-int8, with its losses and gains on its card. Does not
    train."""
    with _sentences():
        from training.publishing.publish import publish_int8
        from vaeserve.bundle.files import read_bundle

        images = _images_like(read_bundle(bundle).manifest.image, data, memory_limit)
        quantized = publish_int8(bundle, images, models, _say)
        _print_metrics(quantized)
        _say(f"published {quantized}")


app.command("quantise", hidden=True)(quantize)  # the old name, kept as an alias


@app.command()
def complete(
    bundle: BundleFolder,
    data: TrainedOn,
    models: Models = Path("models"),
    memory_limit: MemoryLimit = DEFAULTS.memory_limit,
) -> None:
    """Publish the next version of a bundle: the same model, with the calibration of its scores and the map of
    its latent space, from the validation images. Does not train."""
    with _sentences():
        from training.publishing.publish import complete as publish_complete
        from vaeserve.bundle.files import read_bundle

        images = _images_like(read_bundle(bundle).manifest.image, data, memory_limit)
        _say(f"published {publish_complete(bundle, images, models, _say)}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A folder runs/<run>, of a finished or running run.")],
) -> None:
    """Write <run>/report.html: metrics, pictures and settings on one page that needs no network."""
    with _sentences():
        from training.publishing.report import write

        _say(f"written to {write(run, _say)}")


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors that the user can fix end in one sentence and exit status 1, not in a traceback."""
    from training.data.download import DownloadError
    from training.data.images import DataError
    from training.fit.checkpoint import CheckpointError
    from training.fit.trainer import TrainingError
    from training.publishing.onnx_graphs import ExportError
    from vaeserve.bundle.files import BundleError

    try:
        yield
    except (
        BundleError,
        CheckpointError,
        ConfigError,
        DataError,
        DownloadError,
        ExportError,
        TrainingError,
        OSError,
    ) as error:
        _say(f"vae-train: {error}")
        raise typer.Exit(1) from error


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with absolute paths: a run may be resumed or exported from another folder."""
    paths = {name: settings[name] for name in ("data", "init") if settings.get(name)}
    return settings | {name: str(Path(path).resolve()) for name, path in paths.items() if Path(path).exists()}


def _check_name(name: str) -> None:
    """Check the name before training, not after it."""
    from pydantic import TypeAdapter, ValidationError

    from vaeserve.bundle.manifest import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"--name {name} cannot be a model's name: use small letters, digits, '.', '_' and '-'"
        ) from error


def _write_skipped(run: Path, skipped: tuple[str, ...]) -> None:
    """List the files that could not be used in `run`/skipped.txt."""
    if skipped:
        run.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in skipped)
        (run / "skipped.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def _config(run: Path | None, *, needed: bool) -> TrainConfig | None:
    """The config of the run to resume; None if there is none and none is needed."""
    if run is None:
        raise ConfigError("--resume needs --run, the folder of the run to resume")
    path = run / "config.json"
    if path.is_file():
        return TrainConfig.from_json(path.read_text())
    if needed:
        raise ConfigError(f"{path} does not exist, so there is no run to resume in {run}")
    return None


def _print_metrics(bundle: Path) -> None:
    from vaeserve.bundle.files import read_bundle

    _print_table(read_bundle(bundle, verify=False).manifest.metrics)


def _print_table(metrics: "dict[str, Metric]") -> None:
    for key, metric in metrics.items():
        error = f" ± {metric.se:.2g}" if metric.se is not None else ""
        _say(f"  {key:18s} {metric.value:.5g}{error}  (N = {metric.n:,})")


def _images_like(image: "ImageSpec", data: str, memory_limit: int) -> "Images":
    """The data at the size, channels and fit of a model's images."""
    from training.data.images import ImageTarget
    from training.data.load import load

    target = ImageTarget((image.height, image.width), image.channels, image.fit, memory_limit)
    return load(data, target, _say)


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
