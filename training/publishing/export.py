"""A checkpoint → a draft bundle: ONNX graphs that are proven to compute what torch computes.

Normalisation, layout and rounding go into the graphs; randomness stays out of them (a RandomNormal node
would give another answer each time). The proof is made on the very engine that will serve: every figure
published later is taken from these graphs.
"""

import logging
import math
import subprocess
import tempfile
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.config import TrainConfig
from training.data.binarised import model_inputs
from training.data.images import Images
from training.fit import checkpoint as checkpoints
from training.model.flow import Flow
from training.model.graphs import DecoderGraph, DensityGraph, EncoderGraph, PriorGraph
from training.model.networks import VAE
from training.publishing import fit_priors as priors
from vaeserve.bundle.batched import CHUNK, ImageSource, encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import DENSITY, Draft, Golden
from vaeserve.bundle.manifest import (
    DataRecord,
    ImageSpec,
    LatentSpec,
    Manifest,
    PriorSpec,
    Tolerance,
    Training,
)
from vaeserve.bundle.noise import noise
from vaeserve.bundle.prior import MIXTURE_FILE, Mixture, write_prior

OPSET = 18  # what torch's exporter is written for; every onnxruntime of the last years runs it
PARITY = 1e-4  # float32 through a dozen layers: measured errors are around 1e-6
PARITY_BATCHES = (1, 2, 7)  # an axis that was frozen at export shows at one of them
GOLDEN_ROWS = 6
PRIOR = "prior.onnx"
GRAPHS = {  # the file of each graph and its input, by its first output
    "mean": ("encoder.onnx", "image"),
    "image": ("decoder.onnx", "z"),
    "z": (PRIOR, "eps"),
    "eps": (DENSITY, "z"),
}


class ExportError(Exception):
    """The exported graphs do not compute what torch computes; nothing is published."""


def export(checkpoint: Path, data: Images, folder: Path) -> Draft:
    """Write encoder.onnx, decoder.onnx, golden.npz and prior.npz of a checkpoint into `folder`, and of a flow
    prior.onnx and density.onnx.

    The Gaussian's σ and the KL of each dimension are measured here on the validation images, and the prior
    is fitted on the training images, all through the exported graphs. Returns the draft. Raises
    ExportError when the graphs are off torch by more than 1e-4.
    """
    network, state = checkpoints.load(checkpoint)
    config = TrainConfig.from_dict(state["config"])
    held_out = model_inputs(config.likelihood, data, data.split.validation, config.seed)
    images = held_out[: max(GOLDEN_ROWS, *PARITY_BATCHES)]
    write_graph(
        EncoderGraph(network.encoder),
        torch.from_numpy(np.resize(images, (2, *images.shape[1:]))),
        ["mean", "logvar"],
        folder,
    )
    latents = torch.zeros(2, network.shape.latent)
    write_graph(DecoderGraph(network.decoder, network.likelihood), latents, ["image", "pixels"], folder)
    if network.flow is not None:
        write_graph(PriorGraph(network.flow), latents, ["z"], folder)
        write_graph(DensityGraph(network.flow), latents, ["eps", "log_density"], folder)
    golden(network.encoder, network.decoder, images[:GOLDEN_ROWS], network.flow).save(folder / "golden.npz")

    height, width, channels = data.shape
    levels = 2 if network.likelihood.binary else data.levels  # grey images are binarised
    manifest = Manifest(
        name=config.name or data.name,
        version=1,  # the next free one is taken at publishing
        created=datetime.now(UTC).replace(microsecond=0),
        image=ImageSpec(
            height=height, width=width, channels=1 if channels == 1 else 3, levels=levels, fit=config.fit
        ),
        latent=LatentSpec(shape=(network.shape.latent,)),
        prior=None if network.flow is None else PriorSpec(kind="flow", file=PRIOR),
        labels=data.label_names,
        training=Training(
            config=state["config"] | {"step": state["step"], "data": shown_source(config.data)},
            data=DataRecord(digest=data.digest, n=len(data.pixels)),
            code=code_version(),
        ),
        libraries={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
    )
    draft = Draft(folder, manifest)
    engine = Engine(draft.bundle(), threads=usable_cpus())
    tolerance = parity(network.encoder, network.decoder, engine, images, network.flow)
    measured = _measured(engine, network, held_out, config.seed) | {"tolerance": tolerance}
    fit_prior(engine, config, data, folder)
    if network.flow is None:  # which else is what is served; the mixtures lie beside it
        measured["prior"] = PriorSpec(kind="gmm", file=MIXTURE_FILE)
    return Draft(folder, manifest.model_copy(update=measured))


def fit_prior(engine: Engine, config: TrainConfig, data: Images, folder: Path) -> None:
    """Fit mixtures to samples of q(z|x), of all images and of each label's: writes prior.npz."""
    parts = {
        "train": np.random.default_rng(config.seed).permutation(data.split.train)[: priors.MOST_SAMPLES],
        "validation": data.split.validation,
    }
    posteriors = {
        part: encode(engine, model_inputs(config.likelihood, data, rows, config.seed))
        for part, rows in parts.items()
    }

    def samples(part: str, fewest: int, label: int | None = None) -> NDArray[np.float64]:
        posterior = posteriors[part]
        if label is not None and data.labels is not None:
            posterior = posterior.take(data.labels[parts[part]] == label)
        draws = max(1, math.ceil(fewest / len(posterior.mean)))
        first = 1 if part == "train" else 1000
        z = np.concatenate([posterior.sample(first + each) for each in range(draws)])
        return z.reshape(len(z), -1).astype(np.float64)

    def fitted(fewest: int, most: int, label: int | None = None) -> Mixture:
        train, validation = (samples(part, fewest, label) for part in parts)
        return priors.fit_mixture(train, validation, most, config.seed)[0]

    mixture = fitted(priors.FEWEST_SAMPLES, priors.MOST_COMPONENTS)
    by_label = {
        label: fitted(priors.FEWEST_OF_LABEL, priors.MOST_OF_LABEL, label)
        for label in priors.common_labels(data, parts["train"], parts["validation"])
    }
    write_prior(folder / MIXTURE_FILE, mixture, by_label)


def write_graph(module: nn.Module, example: torch.Tensor, outputs: list[str], folder: Path) -> None:
    """Export an EncoderGraph, a DecoderGraph, … to encoder.onnx, …, as `outputs` tell; `example` has two
    rows."""
    name, side = GRAPHS[outputs[0]]
    # The exporter warns of its own internals (deprecations, a torchvision that is not there), not of ours.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as work:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            str(Path(work) / name),
            input_names=[side],
            output_names=outputs,
            dynamic_shapes=({0: "n"},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,  # one file, one digest
            verbose=False,
        )
        (folder / name).write_bytes((Path(work) / name).read_bytes())


@torch.no_grad()
def golden(
    encoder: nn.Module, decoder: nn.Module, images: NDArray[np.uint8], flow: Flow | None = None
) -> Golden:
    """What torch gives for images uint8 [n, h, w, c], and for as many rows of noise."""
    mean, logvar = EncoderGraph(encoder)(torch.from_numpy(np.ascontiguousarray(images)))
    image, pixels = DecoderGraph(decoder)(mean)
    arrays = [mean, logvar, image, pixels]
    if flow is not None:
        eps = torch.from_numpy(noise(0, range(len(images)), mean.shape[1:]))
        z = PriorGraph(flow)(eps)
        arrays += [eps, z, DensityGraph(flow)(z)[1]]
    return Golden(images, *(array.numpy() for array in arrays))


def parity(
    encoder: nn.Module,
    decoder: nn.Module,
    engine: Engine,
    images: NDArray[np.uint8],
    flow: Flow | None = None,
) -> Tolerance:
    """Compare torch and the engine on batches of 1, 2 and 7; returns the tolerance to publish.

    The density is a sum over dimensions: what it is off by counts by each. Other CPUs round differently: 20
    times what was measured here, and at least 1e-3. Raises ExportError.
    """
    worst: dict[str, float] = {}
    for n in PARITY_BATCHES:
        batch = np.resize(images, (n, *images.shape[1:]))
        expected = golden(encoder, decoder, batch, flow)
        posterior = engine.encode(batch)
        found: dict[str, NDArray[np.floating]] = {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "pixels": engine.pixels(expected.mean),
        }
        if flow is not None:
            assert expected.eps is not None  # for mypy
            assert expected.z is not None
            found |= {"z": engine.transform(expected.eps), "log_density": engine.log_density(expected.z)}
        for name, array in found.items():
            off = float(np.abs(array - getattr(expected, name)).max())
            worst[name] = max(worst.get(name, 0.0), off / (posterior.mean[0].size if array.ndim == 1 else 1))
    if not max(worst.values()) <= PARITY:
        raise ExportError(
            "onnxruntime and torch disagree: "
            + ", ".join(f"{name} by {off:.2g}" for name, off in worst.items())
            + f", more than {PARITY:g}; this is a fault of the exporter, please report it with the checkpoint"
        )
    pixels = worst.pop("pixels")
    return Tolerance(latent=max(1e-3, 20 * max(worst.values())), pixels=max(1e-3, 20 * pixels))


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
    """The data as a published file names them: of a path only its last part, the rest is the user's own."""
    return Path(source).name if Path(source).exists() else source


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
