"""(seed, row) → noise → latents: the same numbers on every machine, in every batch.

Row r of seed s depends on s and r alone, so a sample can be drawn again whoever its neighbours in
the batch were. The normals are made here from Philox's raw integers, because numpy promises that
its bit generators stay as they are, and does not promise it of `Generator.normal`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from service.runtime.bundle import Manifest

SEEDS = 2**53  # seeds are 0 … 2^53 - 1: what survives a trip through JSON in every language


def noise(seed: int, rows: range, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normals, float32 [len(rows), *shape].

    Row r comes from Philox (Salmon et al. 2011) keyed by (seed, r). Box–Muller in float64, rounded to
    float32 at the end: the last-digit differences between one machine's logarithm and another's do
    not survive the rounding.
    """
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be an integer from 0 to 2^53 - 1, got {seed}")
    size = math.prod(shape)
    pairs = (size + 1) // 2
    raw = np.empty((len(rows), 2 * pairs), np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], np.uint64))
    state = generator.state
    for index, row in enumerate(rows):
        # Re-keying one generator costs 2 µs a row; making a new one for each costs 13.
        state["state"]["key"][1] = row
        generator.state = state
        raw[index] = generator.random_raw(2 * pairs)
    # 53 bits each; + 1 keeps the logarithm away from zero: (0, 1].
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:, :pairs]))
    angle = (2.0 * math.pi) * uniform[:, pairs:]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normal.reshape(len(rows), 2 * pairs)[:, :size].reshape(len(rows), *shape).astype(np.float32)


def sample(manifest: Manifest, *, seed: int, rows: range, temperature: float = 1.0) -> NDArray[np.float32]:
    """Latents from the model's prior, float32 [len(rows), *latent]; `temperature` scales the deviation."""
    return noise(seed, rows, manifest.latent.shape) * np.float32(temperature)
