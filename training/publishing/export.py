"""Exports a checkpoint as a draft bundle, through graphs that are proven to compute what torch computes."""

import math
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from training.config import TrainConfig
from training.data.binarised import model_inputs
from training.data.images import Images
from training.data.sources import printable
from training.evaluation.parts import Parts
from training.fit import checkpoint as checkpoints
from training.model.networks import VAE
from training.publishing.fit_priors import write_fitted_prior
from training.publishing.onnx_graphs import PARITY_BATCHES, PRIOR, Graphs
from vaeserve.bundle.batched import CHUNK, ImageSource, encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft
from vaeserve.bundle.manifest import DataRecord, ImageSpec, LatentSpec, Manifest, PriorSpec, Training
from vaeserve.bundle.prior import MIXTURE_FILE

GOLDEN_ROWS = 6


def export(checkpoint: Path, data: Images, folder: Path, parts: Parts | None = None) -> Draft:
    """Write the graphs, the golden vectors and the fitted prior of a checkpoint into `folder`.

    The scale of the likelihood and the KL of each dimension are measured on the validation images, and the
    mixtures of prior.npz are fitted to the training images, all through the exported graphs. `parts` may go
    without the mixtures; by default their error is raised. Raises
    ExportError when the graphs differ from torch by more than 1e-4.
    """
    parts = parts or Parts(all_needed=True)
    network, state = checkpoints.load(checkpoint)
    config = TrainConfig.from_dict(state["config"])
    held_out = model_inputs(config.likelihood, data, data.split.validation, config.seed)
    images = held_out[: max(GOLDEN_ROWS, *PARITY_BATCHES)]
    graphs = Graphs(network.encoder, network.decoder, network.likelihood, network.flow)
    graphs.write(folder, data.shape, network.shape.latent)
    graphs.golden(images[:GOLDEN_ROWS]).save(folder / "golden.npz")

    height, width, channels = data.shape
    levels = 2 if network.likelihood.binary else data.levels  # grey images are binarised
    manifest = Manifest(
        name=config.name or data.name,
        version=1,  # publishing sets the next free version
        created=datetime.now(UTC).replace(microsecond=0),
        image=ImageSpec(
            height=height, width=width, channels=1 if channels == 1 else 3, levels=levels, fit=config.fit
        ),
        latent=LatentSpec(shape=(network.shape.latent,)),
        prior=None if network.flow is None else PriorSpec(kind="flow", file=PRIOR),
        labels=data.label_names,
        training=Training(
            config=state["config"]
            | {"step": state["step"], "data": shown_source(config.data), "init": _shown_init(config.init)},
            data=DataRecord(digest=data.digest, n=len(data.pixels)),
            code=code_version(),
        ),
        libraries={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
    )
    draft = Draft(folder, manifest)
    engine = Engine(draft.bundle(), threads=usable_cpus())
    measured = _measured(engine, network, held_out, config.seed)
    measured["tolerance"] = graphs.parity(engine, images)
    with parts.optional("the fitted mixture, so samples are drawn from N(0, I)"):
        write_fitted_prior(engine, config, data, folder, parts)
    # With a flow, the flow is served, and the mixtures are the alternative.
    if network.flow is None:
        fitted = (folder / MIXTURE_FILE).exists()
        measured["prior"] = PriorSpec(kind="gmm", file=MIXTURE_FILE) if fitted else PriorSpec()
    return Draft(folder, manifest.model_copy(update=measured))


def code_version() -> str:
    """This package's version, and the commit where it runs from a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"vaeserve {version('vaeserve')}"
    return f"vaeserve {version('vaeserve')} ({commit})"


def shown_source(source: str) -> str:
    """The name of the data in a published file: of a path only its last part, since the rest is private."""
    return printable(Path(source).name if Path(source).exists() else source)


def _shown_init(init: str | None) -> str | None:
    """models/<name>/<version> or <run>/checkpoints/step-<n>, without the private path before it."""
    return init and "/".join(Path(init).parts[-3:])


def _measured(engine: Engine, network: VAE, images: ImageSource, seed: int) -> dict[str, Any]:
    """Manifest fields that are measurements on the validation images."""
    posterior = encode(engine, images)

    def error() -> float:
        z = posterior.sample(seed)
        squares = sum(
            float(np.square(engine.pixels(z[at : at + CHUNK]) - images[at : at + CHUNK] / 255.0).sum())
            for at in range(0, len(images), CHUNK)
        )
        return squares / (len(images) * math.prod(images[:1].shape[1:]))

    learned = None if network.scale is None else float(network.scale.detach())
    kl = tuple(np.round(posterior.kl().mean(axis=0), 4).ravel().tolist())
    return {
        "latent": engine.manifest.latent.model_copy(update={"kl": kl}),
        "likelihood": network.likelihood.record(learned, error),
    }
