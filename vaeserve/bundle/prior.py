"""The prior p(z) that a model samples from: N(0, I), a Gaussian mixture, or a flow."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle.arrays import Doubles, Floats
from vaeserve.bundle.files import Bundle, BundleError
from vaeserve.bundle.noise import noise, noise_and_uniform, truncated

MIXTURE_FILE = "prior.npz"
NO_DENSITY = "its prior is a flow without density.onnx, so the log density of latents is unknown"

PriorKind = Literal["normal", "mixture", "flow"]


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture on flattened latents: weights [k], means [k, d], Cholesky factors [k, d, d]."""

    weights: Doubles
    means: Floats
    factors: Floats

    def at(self, uniform: Doubles, normals: Floats, temperature: float) -> Floats:
        """One latent [d] a row: `uniform` [n] selects the component, `normals` [n, d] the place in it."""
        component = np.searchsorted(np.cumsum(self.weights), uniform).clip(max=len(self.weights) - 1)
        spread = np.einsum("nij,nj->ni", self.factors[component], normals)
        latents: Floats = self.means[component] + np.float32(temperature) * spread
        return latents

    def log_density(self, z: Doubles) -> Doubles:
        """log p(z) in nats, float64 [n]; z is [n, d]."""
        parts = np.stack(
            [
                log_standard_normal(np.linalg.solve(factor, (z - mean).T).T) - np.log(np.diag(factor)).sum()
                for mean, factor in zip(self.means.astype(float), self.factors.astype(float), strict=True)
            ]
        )
        with np.errstate(divide="ignore"):  # a component of weight 0
            weights = np.log(self.weights)[:, np.newaxis]
        density: Doubles = np.logaddexp.reduce(parts + weights, axis=0)
        return density


@dataclass(frozen=True)
class Flow:
    """A prior that was trained with the model, as functions on float32 [n, *shape].

    `sample` maps noise to latents. `log_density` is log p(z) of latents in nats, float64 [n]; it is None
    where the bundle has no density.onnx.
    """

    sample: Callable[[Floats], Floats]
    log_density: Callable[[Floats], Doubles] | None = None


@dataclass(frozen=True)
class Prior:
    """Everything a model can sample from: N(0, I), and a mixture and a flow where the bundle has them."""

    shape: tuple[int, ...]
    mixture: Mixture | None = None
    by_label: Mapping[int, Mixture] = field(default_factory=dict)  # fitted to the images of one label each
    flow: Flow | None = None

    @property
    def kinds(self) -> tuple[PriorKind, ...]:
        """The kinds that can be sampled; the last is the default."""
        fitted: tuple[PriorKind, ...] = ("mixture",) if self.mixture else ()
        trained: tuple[PriorKind, ...] = ("flow",) if self.flow else ()
        return ("normal", *fitted, *trained)

    def resolve(self, kind: PriorKind | None = None, label: int | None = None) -> PriorKind:
        """The kind that a request for `kind` or `label` samples from."""
        return "mixture" if label is not None else kind or self.kinds[-1]

    @property
    def has_density(self) -> bool:
        """Whether `log_density` is known; only a flow without density.onnx lacks it."""
        return self.flow is None or self.flow.log_density is not None

    def log_density(self, latents: Floats) -> Doubles:
        """log p(z) in nats of latents [n, *shape] under the default kind, float64 [n].

        ValueError unless `has_density`.
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
        transform: bool = True,
    ) -> Floats:
        """Latents float32 [len(rows), *shape], each a function of `seed` and its row alone.

        `temperature` scales the noise: in each component of a mixture, or before a flow. `kind` is one of
        `kinds`; `label`, one of `by_label`, selects that label's mixture instead. `truncation` t draws from
        a normal truncated at ±t. With `transform=False` the noise of a flow is returned untransformed, for
        a caller that runs the graph itself, in a batch.
        """
        resolved = self.resolve(kind, label)
        mixture = self.by_label[label] if label is not None else self.mixture
        if resolved == "mixture" and mixture is not None:
            normals, uniform = noise_and_uniform(seed, rows, (math.prod(self.shape),))
            normals = normals if truncation is None else truncated(normals, truncation)
            return mixture.at(uniform, normals, temperature).reshape(len(rows), *self.shape)
        eps = noise(seed, rows, self.shape)
        eps = (eps if truncation is None else truncated(eps, truncation)) * np.float32(temperature)
        return self.flow.sample(eps) if self.flow and resolved == "flow" and transform else eps


def read_prior(bundle: Bundle, flow: Flow | None = None) -> Prior | None:
    """The prior of a bundle, None where there is nothing to sample from; BundleError for a bad file.

    `flow` runs the bundle's prior graphs, if it has any.
    """
    shape, spec = bundle.manifest.latent.shape, bundle.manifest.prior
    if spec is None:
        return None
    if spec.kind == "normal":
        return Prior(shape)
    if spec.kind == "flow" and MIXTURE_FILE not in bundle.manifest.files:
        return Prior(shape, flow=flow)
    file = MIXTURE_FILE if spec.kind == "flow" else spec.file
    if file is None:
        raise BundleError(f"{bundle.path}: its prior is a mixture and names no file; publish it again")
    arrays = bundle.arrays(file)
    mixture = _read_mixture(bundle, file, arrays, "")
    by_label = {
        number: _read_mixture(bundle, file, arrays, f"label{number}_")
        for number in range(len(bundle.manifest.labels or ()))
        if f"label{number}_weights" in arrays
    }
    return Prior(shape, mixture, by_label, flow)


def write_prior(path: Path, mixture: Mixture, by_label: Mapping[int, Mixture]) -> None:
    """Write prior.npz: `weights`, `means`, `factors` of all images; `label<i>_weights` … of label i alone."""
    arrays = asdict(mixture)
    for number, of_label in by_label.items():
        arrays |= {f"label{number}_{name}": array for name, array in asdict(of_label).items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def log_standard_normal(z: Doubles) -> Doubles:
    """log N(z; 0, I) in nats, float64 [n]; z is [n, d]."""
    density: Doubles = -0.5 * (np.square(z).sum(axis=1) + z.shape[1] * math.log(2 * math.pi))
    return density


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
