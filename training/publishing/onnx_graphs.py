"""Torch networks as ONNX files, with a proof that onnxruntime computes what torch computes.

The proof runs on the engine that serves, so every figure published later is a figure of these files.
"""

import dataclasses
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model.flow import Flow
from training.model.graphs import DecoderGraph, DensityGraph, EncoderGraph, PriorGraph
from training.model.likelihoods import LIKELIHOODS, Likelihood
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import DENSITY, Golden
from vaeserve.bundle.manifest import Tolerance
from vaeserve.bundle.noise import noise

OPSET = 18  # the exporter's native opset; every onnxruntime of recent years runs it
PARITY = 1e-4  # float32 through a dozen layers: measured errors are around 1e-6
PARITY_BATCHES = (1, 2, 7)  # an axis that was frozen at export shows at one of them
PRIOR = "prior.onnx"


class ExportError(Exception):
    """The exported graphs do not compute what torch computes, so nothing is published."""


@dataclasses.dataclass(frozen=True)
class Graphs:
    """The networks of one bundle.

    `encoder` maps images float32 [n, c, h, w] to mean and logvar, `decoder` maps latents to logits.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood = LIKELIHOODS["gaussian"]
    flow: Flow | None = None

    def write(self, folder: Path, image: tuple[int, int, int], latent: int) -> None:
        """Write encoder.onnx and decoder.onnx, and prior.onnx and density.onnx of a flow.

        `image` is (height, width, channels).
        """
        images, z = torch.zeros(2, *image, dtype=torch.uint8), torch.zeros(2, latent)
        _write(EncoderGraph(self.encoder), images, "image", ["mean", "logvar"], folder / "encoder.onnx")
        decoder = DecoderGraph(self.decoder, self.likelihood)
        _write(decoder, z, "z", ["image", "pixels"], folder / "decoder.onnx")
        if self.flow is not None:
            _write(PriorGraph(self.flow), z, "eps", ["z"], folder / PRIOR)
            _write(DensityGraph(self.flow), z, "z", ["eps", "log_density"], folder / DENSITY)

    @torch.no_grad()
    def golden(self, images: NDArray[np.uint8]) -> Golden:
        """Torch's outputs for images uint8 [n, h, w, c], and of a flow for n rows of noise."""
        mean, logvar = EncoderGraph(self.encoder)(torch.from_numpy(np.ascontiguousarray(images)))
        arrays = [mean, logvar, *DecoderGraph(self.decoder, self.likelihood)(mean)]
        if self.flow is not None:
            eps = torch.from_numpy(noise(0, range(len(images)), mean.shape[1:]))
            z = PriorGraph(self.flow)(eps)
            arrays += [eps, z, DensityGraph(self.flow)(z)[1]]
        return Golden(images, *(array.numpy() for array in arrays))

    def parity(self, engine: Engine, images: NDArray[np.uint8]) -> Tolerance:
        """Compare torch with the engine on batches of 1, 2 and 7; returns the tolerance to publish.

        Other CPUs round differently, so the tolerance is 20 times the error measured here, and at least 1e-3.
        A log density is a sum over the latent dimensions, so its error is divided by their number. Raises
        ExportError when an error is above 1e-4.
        """
        worst: dict[str, float] = {}
        for n in PARITY_BATCHES:
            batch = np.resize(images, (n, *images.shape[1:]))
            expected = self.golden(batch)
            posterior = engine.encode(batch)
            found: dict[str, NDArray[np.floating]] = {
                "mean": posterior.mean,
                "logvar": posterior.logvar,
                "pixels": engine.pixels(expected.mean),
            }
            if expected.eps is not None and expected.z is not None:
                found |= {"z": engine.transform(expected.eps), "log_density": engine.log_density(expected.z)}
            for name, array in found.items():
                error = float(np.abs(array - getattr(expected, name)).max())
                terms = posterior.mean[0].size if array.ndim == 1 else 1
                worst[name] = max(worst.get(name, 0.0), error / terms)
        if not max(worst.values()) <= PARITY:
            raise ExportError(
                "onnxruntime and torch disagree: "
                + ", ".join(f"{name} by {error:.2g}" for name, error in worst.items())
                + f", more than {PARITY:g}; report this fault of the exporter with the checkpoint"
            )
        pixels = worst.pop("pixels")
        return Tolerance(latent=max(1e-3, 20 * max(worst.values())), pixels=max(1e-3, 20 * pixels))


def _write(module: nn.Module, example: Tensor, name: str, outputs: list[str], path: Path) -> None:
    """Export a module with one input; `example` has two rows."""
    # The exporter warns about its own internals: deprecations, and a missing torchvision.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as work:
        warnings.simplefilter("ignore")
        draft = Path(work) / path.name
        torch.onnx.export(
            module.eval(),
            (example,),
            str(draft),
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: "n"},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,  # one file, one digest
            verbose=False,
        )
        path.write_bytes(draft.read_bytes())
