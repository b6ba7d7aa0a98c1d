"""(seed, row) → noise → latents: the same numbers on every machine, in every batch.

Row r of seed s depends on s and r alone, so a sample can be drawn again whoever its neighbours in
the batch were. The normals are made here from Philox's raw integers, because numpy promises that
its bit generators stay as they are, and does not promise it of `Generator.normal`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.manifest import Bundle, BundleError

SEEDS = 2**53  # seeds are 0 … 2^53 - 1: what survives a trip through JSON in every language

MIXTURE_FILE = "prior.npz"
NO_DENSITY = "its prior is a flow without density.onnx, so nothing is known of how likely latents are"

PriorKind = Literal["normal", "mixture", "flow"]
Floats = NDArray[np.float32]


def noise(seed: int, rows: range, shape: tuple[int, ...]) -> Floats:
    """Standard normals, float32 [len(rows), *shape].

    Row r comes from Philox (Salmon et al. 2011) keyed by (seed, r). Box–Muller in float64, rounded to
    float32 at the end: the last-digit differences between one machine's logarithm and another's do
    not survive the rounding.
    """
    return _normals(_uniforms(seed, rows, _words(shape)), shape)


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture on flattened latents: weights [k], means [k, d], Cholesky factors [k, d, d]."""

    weights: NDArray[np.float64]
    means: Floats
    factors: Floats

    def at(self, uniform: NDArray[np.float64], normals: Floats, temperature: float) -> Floats:
        """One draw for each row of `uniform` [n] (which component) and `normals` [n, d] (where in it)."""
        chosen = np.searchsorted(np.cumsum(self.weights), uniform).clip(max=len(self.weights) - 1)
        spread = np.einsum("nij,nj->ni", self.factors[chosen], normals)
        drawn: Floats = self.means[chosen] + np.float32(temperature) * spread
        return drawn

    def log_density(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p(z) in nats, float64 [n]; z is [n, d]."""
        parts = np.stack(
            [
                log_standard_normal(np.linalg.solve(factor, (z - mean).T).T) - np.log(np.diag(factor)).sum()
                for mean, factor in zip(self.means.astype(float), self.factors.astype(float), strict=True)
            ]
        )
        with np.errstate(divide="ignore"):  # a component of no weight
            weights = np.log(self.weights)[:, np.newaxis]
        density: NDArray[np.float64] = np.logaddexp.reduce(parts + weights, axis=0)
        return density


@dataclass(frozen=True)
class Flow:
    """A prior that was trained with the model: `sample` makes latents float32 [n, *shape] of noise of that
    shape; `log_density` is log p(z) of latents in nats, float64 [n], None where the bundle does not say."""

    sample: Callable[[Floats], Floats]
    log_density: Callable[[Floats], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Prior:
    """What a model samples from: N(0, I), a mixture that was fitted to its posterior, or its flow."""

    shape: tuple[int, ...]
    mixture: Mixture | None = None
    by_label: Mapping[int, Mixture] = field(default_factory=dict)  # of the images with each label alone
    flow: Flow | None = None

    @property
    def kinds(self) -> tuple[PriorKind, ...]:
        """What can be sampled from; the last is what is served where nothing else is asked for."""
        fitted: tuple[PriorKind, ...] = ("mixture",) if self.mixture else ()
        trained: tuple[PriorKind, ...] = ("flow",) if self.flow else ()
        return ("normal", *fitted, *trained)

    def chosen(self, kind: PriorKind | None = None, label: int | None = None) -> PriorKind:
        """What is sampled from where `kind` or `label` is asked for."""
        return "mixture" if label is not None else kind or self.kinds[-1]

    def log_density(self, latents: Floats) -> NDArray[np.float64]:
        """log p(z) in nats of latents [n, *shape] under what is sampled from by default, float64 [n].

        ValueError where that is a flow whose density the bundle does not say.
        """
        if self.flow is not None:
            if self.flow.log_density is None:
                raise ValueError(NO_DENSITY)
            return self.flow.log_density(latents)
        z = latents.reshape(len(latents), -1).astype(np.float64)
        return log_standard_normal(z) if self.mixture is None else self.mixture.log_density(z)

    def sample(
        self,
        *,
        seed: int,
        rows: range,
        temperature: float = 1.0,
        kind: PriorKind | None = None,
        label: int | None = None,
        truncation: float | None = None,
    ) -> Floats:
        """Latents float32 [len(rows), *shape]; `temperature` scales the deviation of the noise, within each
        component of a mixture, and before a flow.

        `kind` is one of `kinds`; `label`, one of `by_label`, takes that label's mixture instead.
        `truncation` t takes the noise from a normal that is cut off at ±t.
        """
        drawn = self.draw(
            seed=seed, rows=rows, temperature=temperature, kind=kind, label=label, truncation=truncation
        )
        if self.flow is not None and self.chosen(kind, label) == "flow":
            return self.flow.sample(drawn)
        return drawn

    def draw(
        self,
        *,
        seed: int,
        rows: range,
        temperature: float = 1.0,
        kind: PriorKind | None = None,
        label: int | None = None,
        truncation: float | None = None,
    ) -> Floats:
        """What `sample` gives; of a flow (see `chosen`) the noise that it has still to make latents of."""

        def cut(normals: Floats) -> Floats:
            return normals if truncation is None else truncated(normals, truncation)

        mixture = self.mixture if self.chosen(kind) == "mixture" else None
        if label is not None:
            mixture = self.by_label[label]
        if mixture is None:
            return cut(noise(seed, rows, self.shape)) * np.float32(temperature)
        words = _words(self.shape)
        uniform = _uniforms(seed, rows, words + 1)
        normals = cut(_normals(uniform[:, :words], (math.prod(self.shape),)))
        return mixture.at(uniform[:, words], normals, temperature).reshape(len(rows), *self.shape)


def read_prior(bundle: Bundle, flow: Flow | None = None) -> Prior:
    """The prior that a bundle asks for, whose graphs are `flow` if it has any; BundleError when its file is
    not what it should be."""
    shape, spec = bundle.manifest.latent.shape, bundle.manifest.prior
    if spec is None or spec.kind == "normal":
        return Prior(shape)
    if spec.kind == "flow" and MIXTURE_FILE not in bundle.manifest.files:
        return Prior(shape, flow=flow)
    file = MIXTURE_FILE if spec.kind == "flow" else spec.file
    if file is None:
        raise BundleError(f"{bundle.path}: its prior is a mixture and names no file; publish it again")
    arrays = bundle.arrays(file)
    mixture = _read_mixture(bundle, file, arrays, "")
    by_label = {}
    for number in range(len(bundle.manifest.labels or ())):
        if f"label{number}_weights" in arrays:
            by_label[number] = _read_mixture(bundle, file, arrays, f"label{number}_")
    return Prior(shape, mixture, by_label, flow)


def write_prior(path: Path, mixture: Mixture, by_label: Mapping[int, Mixture]) -> None:
    """prior.npz: `weights`, `means`, `factors` of all images, and `label<i>_weights` … of label i alone."""
    arrays = asdict(mixture)
    for number, of_label in by_label.items():
        arrays |= {f"label{number}_{name}": array for name, array in asdict(of_label).items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _read_mixture(bundle: Bundle, file: str, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Mixture:
    """The mixture whose three arrays begin with `prefix`."""
    d = bundle.manifest.latent.size
    k = arrays[f"{prefix}weights"].size if f"{prefix}weights" in arrays else 0
    for name, expected in {"weights": (k,), "means": (k, d), "factors": (k, d, d)}.items():
        array = arrays.get(prefix + name)
        if k == 0 or array is None or array.shape != expected or not np.isfinite(array).all():
            raise BundleError(
                f"{bundle.path / file}: {prefix}{name} must be finite, of shape {list(expected)}; "
                "publish it again"
            )
    weights = arrays[f"{prefix}weights"].astype(np.float64)
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-6:
        raise BundleError(f"{bundle.path / file}: {prefix}weights do not sum to 1; publish it again")
    means, factors = (arrays[prefix + name].astype(np.float32) for name in ("means", "factors"))
    return Mixture(weights, means, factors)


def truncated(normals: Floats, limit: float) -> Floats:
    """Standard normals → normals that are cut off at ±limit, each the image of one: the order stays.

    Φ⁻¹(Φ(-t) + (Φ(t) - Φ(-t)) Φ(e)): no draw is thrown away, so row r still depends on (seed, r) alone.
    """
    normal = NormalDist()
    tail = normal.cdf(-limit)
    cut = [normal.inv_cdf(tail + (1 - 2 * tail) * normal.cdf(each)) for each in normals.ravel().tolist()]
    return np.clip(np.array(cut, np.float32), -limit, limit).reshape(normals.shape)


def log_standard_normal(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log N(z; 0, I) in nats, float64 [n]; z is [n, d]."""
    density: NDArray[np.float64] = -0.5 * (np.square(z).sum(axis=1) + z.shape[1] * math.log(2 * math.pi))
    return density


def _words(shape: tuple[int, ...]) -> int:
    """Raw integers that one row of normals takes: two for each pair."""
    return 2 * ((math.prod(shape) + 1) // 2)


def _uniforms(seed: int, rows: range, words: int) -> NDArray[np.float64]:
    """float64 [len(rows), words] in (0, 1], 53 bits each."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be an integer from 0 to 2^53 - 1, got {seed}")
    raw = np.empty((len(rows), words), np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], np.uint64))
    state = generator.state
    for index, row in enumerate(rows):
        # Re-keying one generator costs 2 µs a row; making a new one for each costs 13.
        state["state"]["key"][1] = row
        generator.state = state
        raw[index] = generator.random_raw(words)
    # + 1 keeps the logarithm away from zero.
    return ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def _normals(uniform: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    n, words = uniform.shape
    radius = np.sqrt(-2.0 * np.log(uniform[:, : words // 2]))
    angle = (2.0 * math.pi) * uniform[:, words // 2 :]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normal.reshape(n, words)[:, : math.prod(shape)].reshape(n, *shape).astype(np.float32)
