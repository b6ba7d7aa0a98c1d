"""Publishes `reference@1`, the network of all serving benchmarks, with seeded random weights.

    python -m benchmarks.reference --models DIR

28×28×1, 32 latents, 0.93 M parameters in the encoder and in the decoder, about 0.2 ms per image on one core.
It never changes, so ratios measured at different times are comparable.
"""

import argparse
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model.networks import Posterior
from training.publishing.onnx_graphs import Graphs
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.files import Draft, publish
from vaeserve.bundle.likelihood import Bernoulli
from vaeserve.bundle.manifest import ImageSpec, LatentSpec, Manifest

SIDE, LATENT, WIDTH = 28, 32, 32


class Residual(nn.Module):
    """SiLU(x + conv3×3(SiLU(conv3×3(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x + self.last(functional.silu(self.first(x))))


class Encoder(nn.Module):
    """[n, 1, 28, 28] in [0, 1] → mean and logvar [n, 32]."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.SiLU(),
            Residual(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            Residual(2 * width),
            nn.Flatten(),
            nn.Linear(98 * width, 8 * width),
            nn.SiLU(),
            nn.Linear(8 * width, 2 * LATENT),
        )

    def forward(self, images: Tensor) -> Posterior:
        return Posterior(*self.layers(images).chunk(2, dim=1))


class Decoder(nn.Module):
    """[n, 32] → logits [n, 1, 28, 28]."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 8 * width),
            nn.SiLU(),
            nn.Linear(8 * width, 98 * width),
            nn.SiLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
            Residual(2 * width),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            Residual(width),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.layers(z)
        return logits


class Reference(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)


def build(width: int = WIDTH) -> Reference:
    """Build the network, with the same weights on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reference(width).eval()


def publish_reference(models: Path, name: str = "reference", width: int = WIDTH) -> Path:
    """Publish the network in the repository `models` unless it is there; returns the bundle's folder.

    Other widths, under other names, show the cost of the service relative to smaller and larger models.
    """
    if (models / name / "1/manifest.json").is_file():
        return models / name / "1"
    network = build(width)
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 1), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        graphs = Graphs(network.encoder, network.decoder)
        graphs.write(folder, (SIDE, SIDE, 1), LATENT)
        graphs.golden(images).save(folder / "golden.npz")
        manifest = Manifest(
            name=name,
            version=1,
            created=datetime.now(UTC),
            image=ImageSpec(height=SIDE, width=SIDE, channels=1),
            latent=LatentSpec(shape=(LATENT,)),
            likelihood=Bernoulli(),
            libraries={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        )
        draft = Draft(folder, manifest)
        tolerance = graphs.parity(Engine(draft.bundle()), images)
        return publish(models, name, Draft(folder, manifest.model_copy(update={"tolerance": tolerance})))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the repository to publish into")
    print(publish_reference(parser.parse_args().models))


if __name__ == "__main__":
    main()
