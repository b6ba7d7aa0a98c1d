"""A small classifier of the training labels, whose hidden features measure samples.

Features of the model under evaluation would be biased in its favour, and features of a network trained on
photographs mean little for digits. The resulting figures compare models of the same data and seed only.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.images import ByteImages, Images
from training.model.networks import as_pixels

FEATURES = 64
MOST_TRAINED = 20_000  # images
STEPS, BATCH, RATE = 400, 128, 2e-3
CHUNK = 512


class Classifier(nn.Module):
    """Images float32 [n, c, h, w] in [0, 1] → logits [n, classes], by way of `features` [n, 64]."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        height, width, before = shape
        layers: list[nn.Module] = []
        channels = 16
        while max(height, width) > 7 or not layers:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.SiLU()]
            before, channels = channels, min(2 * channels, 64)
            height, width = -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(before * height * width, FEATURES), nn.SiLU()
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def train(data: Images, seed: int) -> Classifier:
    """Train a classifier on the training labels; data and seed determine the result."""
    assert data.labels is not None
    rng = np.random.default_rng(seed)
    rows = rng.permutation(data.split.train)[:MOST_TRAINED]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(data.shape, int(data.labels.max()) + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        batch = rng.choice(rows, min(BATCH, len(rows)), replace=False)
        loss = nn.functional.cross_entropy(
            classifier(as_pixels(torch.from_numpy(data.pixels[batch]))), torch.from_numpy(data.labels[batch])
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()


@torch.no_grad()
def features(classifier: Classifier, images: ByteImages) -> NDArray[np.float64]:
    """The hidden features, float64 [n, 64], of images uint8 [n, h, w, c]."""
    parts = [
        classifier.features(as_pixels(torch.from_numpy(images[at : at + CHUNK]))).numpy()
        for at in range(0, len(images), CHUNK)
    ]
    return np.concatenate(parts).astype(np.float64)


@torch.no_grad()
def predict(classifier: Classifier, images: ByteImages) -> NDArray[np.int64]:
    """The most likely label of each image, int64 [n]."""
    logits = classifier.head(torch.from_numpy(features(classifier, images)).to(torch.float32))
    return logits.argmax(dim=1).numpy()  # type: ignore[no-any-return]
