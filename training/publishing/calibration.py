"""The scores of held-out images, beside which the service judges new ones: writes calibration.npz."""

from pathlib import Path

import numpy as np

from vaeserve.bundle.batched import CHUNK, ImageSource
from vaeserve.bundle.calibration import calibrate
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.scores import Scores, score

FILE = "calibration.npz"
MOST = 10_000  # images: a p-value near 0.05 is then good to ± 0.002


def scores(engine: Engine, images: ImageSource, seed: int) -> Scores:
    """The scores of images uint8 [n, h, w, c] as /score computes them; row r has the noise of row r."""
    prior, parts = engine.prior, []
    if prior is None:
        raise ValueError(f"{engine.manifest.reference} has no prior, so images have no scores")
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        posterior = engine.encode(part)
        z = posterior.sample(seed, range(start, start + len(part)))
        parts.append(
            score(
                engine.manifest,
                part,
                posterior,
                engine.pixels(z),
                engine.decode(posterior.mean),
                prior.log_density(posterior.mean),
            )
        )
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def write_calibration(engine: Engine, images: ImageSource, seed: int, folder: Path) -> None:
    """calibration.npz of at most `MOST` images that the model was neither trained nor tested on."""
    few = images if len(images) <= MOST else images[:MOST]
    np.savez_compressed(folder / FILE, allow_pickle=False, **calibrate(scores(engine, few, seed))._asdict())
