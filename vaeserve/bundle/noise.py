"""Reproducible noise: the same seed and row give the same numbers on every machine, in every batch.

Row r of seed s depends on s and r alone, so a sample can be drawn again without the rest of its batch.
The normals are computed here from Philox's raw integers: numpy guarantees that its bit generators never
change, but not that `Generator.normal` does not.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from vaeserve.bundle.arrays import Doubles, Floats

SEEDS = 2**53  # seeds are 0 … 2^53 - 1: JSON numbers that every language reads exactly


def noise(seed: int, rows: Sequence[int], shape: tuple[int, ...]) -> Floats:
    """Standard normals, float32 [len(rows), *shape].

    Row r comes from Philox (Salmon et al. 2011) keyed by (seed, r). Box-Muller in float64, rounded to
    float32 at the end: differences in the last digit of one machine's logarithm do not survive the
    rounding.
    """
    return _normals(uniforms(seed, rows, _words(shape)), shape)


def noise_and_uniform(seed: int, rows: Sequence[int], shape: tuple[int, ...]) -> tuple[Floats, Doubles]:
    """The normals of `noise`, and one independent uniform for each row, float64 [len(rows)] in (0, 1]."""
    words = _words(shape)
    uniform = uniforms(seed, rows, words + 1)
    return _normals(uniform[:, :words], shape), uniform[:, words]


def uniforms(seed: int, rows: Sequence[int], count: int) -> Doubles:
    """Uniforms in (0, 1] of 53 bits, float64 [len(rows), count]; ValueError for a seed out of range."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be an integer from 0 to 2^53 - 1, got {seed}")
    raw = np.empty((len(rows), count), np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], np.uint64))
    state = generator.state
    for index, row in enumerate(rows):
        # Re-keying one generator costs 2 µs a row; making a new one for each costs 13.
        state["state"]["key"][1] = row
        generator.state = state
        raw[index] = generator.random_raw(count)
    # + 1 keeps the logarithm away from zero.
    return ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def truncated(normals: Floats, limit: float) -> Floats:
    """Map standard normals to normals truncated at ±limit, in the same order.

    Φ⁻¹(Φ(-t) + (Φ(t) - Φ(-t)) Φ(e)): no draw is rejected, so row r still depends on (seed, r) alone.
    """
    normal = NormalDist()
    tail = normal.cdf(-limit)
    cut = [normal.inv_cdf(tail + (1 - 2 * tail) * normal.cdf(each)) for each in normals.ravel().tolist()]
    return np.clip(np.array(cut, np.float32), -limit, limit).reshape(normals.shape)


def _words(shape: tuple[int, ...]) -> int:
    """Uniforms that one row of normals takes: two for each pair."""
    return 2 * ((math.prod(shape) + 1) // 2)


def _normals(uniform: Doubles, shape: tuple[int, ...]) -> Floats:
    n, words = uniform.shape
    radius = np.sqrt(-2.0 * np.log(uniform[:, : words // 2]))
    angle = (2.0 * math.pi) * uniform[:, words // 2 :]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normal.reshape(n, words)[:, : math.prod(shape)].reshape(n, *shape).astype(np.float32)
