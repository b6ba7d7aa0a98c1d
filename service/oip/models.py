"""One VAE as several models of the Open Inference Protocol: what each takes, gives and does.

A model of that protocol has one set of inputs and outputs. Tensors are called what the graphs call them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.admission import admit
from service.core.problems import InvalidRequest, NoPrior, UnknownModel
from service.core.service import ServedModel, ServedModels, Service
from service.oip.tensors import Inference, Spec
from service.operations.score import scores_of
from vaeserve.bundle.manifest import Manifest
from vaeserve.bundle.scores import squared_error

SEEDS = 2**53

Arrays = Mapping[str, NDArray[Any]]
Specs = tuple[Spec, ...]


@dataclass(frozen=True)
class Function:
    """What a VAE can do, as a model of the protocol."""

    inputs: Callable[[Manifest], Specs]
    outputs: Callable[[Manifest], Specs]
    run: Callable[[Service, ServedModel, Inference], Awaitable[Arrays]]
    has: Callable[[Manifest], bool] = lambda its: True  # whether a model can do it
    graph: str | None = None  # the one graph that it is a run of; None: several steps


def _image(manifest: Manifest) -> Spec:
    return Spec("image", "UINT8", manifest.image.shape)


def _latent(name: str, manifest: Manifest) -> Spec:
    return Spec(name, "FP32", manifest.latent.shape)


async def _encode(service: Service, model: ServedModel, asked: Inference) -> Arrays:
    return (await model.encode(asked.inputs["image"]))._asdict()


async def _decode(service: Service, model: ServedModel, asked: Inference) -> Arrays:
    return {"image": await model.decode(asked.inputs["z"])}


async def _reconstruct(service: Service, model: ServedModel, asked: Inference) -> Arrays:
    """As /reconstruct: the mean is decoded, and `error` is the squared error on [0, 1]."""
    images = asked.inputs["image"]
    again = await model.decode((await model.encode(images)).mean)
    error = await service.run(images.size, lambda: squared_error(images, again))
    model.metrics.reconstructed(error)
    return {"image": again, "error": error[:, np.newaxis]}


async def _sample(service: Service, model: ServedModel, asked: Inference) -> Arrays:
    """Each row as /sample with n = 1 and that seed; the parameter `temperature` is for all of them."""
    seeds = asked.inputs["seed"][:, 0]
    if not ((seeds >= 0) & (seeds < SEEDS)).all():
        raise InvalidRequest("`seed` must be from 0 to 2^53 - 1.")
    temperature = asked.parameters.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 0 <= temperature <= 10:
        raise InvalidRequest("The parameter `temperature` must be a number from 0 to 10.")

    prior = model.prior
    if prior is None:
        raise NoPrior(f"{model.manifest.reference} has no prior to sample from; send latents to decode.")

    def draw() -> NDArray[np.float32]:
        rows = (
            prior.sample(seed=int(seed), rows=range(1), temperature=temperature, transform=False)
            for seed in seeds
        )
        return np.concatenate(list(rows))

    drawn = await service.run(len(seeds) * model.manifest.latent.size, draw)
    z = await model.transform(drawn, prior.resolve())
    return {"image": await model.decode(z), "z": z}


def _score_columns(manifest: Manifest) -> Specs:
    names = ["elbo", "distortion", "rate", "error"] + (["p_value"] if manifest.calibration else [])
    return tuple(Spec(name, "FP32", (1,)) for name in names)


async def _score(service: Service, model: ServedModel, asked: Inference) -> Arrays:
    """As /score, in nats; the parameter `seed` is of the noise, 0 if there is none."""
    images, seed = asked.inputs["image"], asked.parameters.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise InvalidRequest("The parameter `seed` must be from 0 to 2^53 - 1.")
    admit(2 * len(images))
    found, _, _ = await scores_of(service, model, images, seed)
    columns = {"elbo": found.elbo} | found._asdict()
    if model.calibration:
        columns["p_value"] = model.calibration.p_values(found)["value"]
    return {name: column.astype(np.float32)[:, np.newaxis] for name, column in columns.items()}


FUNCTIONS: dict[str, Function] = {
    "encode": Function(
        inputs=lambda its: (_image(its),),
        outputs=lambda its: (_latent("mean", its), _latent("logvar", its)),
        run=_encode,
        graph="encoder",
    ),
    "decode": Function(
        inputs=lambda its: (_latent("z", its),),
        outputs=lambda its: (_image(its),),
        run=_decode,
        graph="decoder",
    ),
    "reconstruct": Function(
        inputs=lambda its: (_image(its),),
        outputs=lambda its: (_image(its), Spec("error", "FP32", (1,))),
        run=_reconstruct,
    ),
    "sample": Function(
        inputs=lambda its: (Spec("seed", "INT64", (1,)),),
        outputs=lambda its: (_image(its), _latent("z", its)),
        run=_sample,
    ),
    "score": Function(
        inputs=lambda its: (_image(its),),
        outputs=_score_columns,
        run=_score,
        has=lambda its: its.likelihood is not None,
    ),
}


@dataclass(frozen=True)
class Chosen:
    """One function of one version of a VAE: a model of the protocol."""

    served: ServedModel
    name: str  # the function's

    @property
    def function(self) -> Function:
        return FUNCTIONS[self.name]

    @property
    def full_name(self) -> str:
        return f"{self.served.manifest.name}.{self.name}"

    @property
    def labels(self) -> tuple[str, str, str]:
        """What its counters are called by."""
        return self.served.manifest.name, self.version, self.name

    @property
    def version(self) -> str:
        return str(self.served.manifest.version)

    @property
    def inputs(self) -> Specs:
        return self.function.inputs(self.served.manifest)

    @property
    def outputs(self) -> Specs:
        return self.function.outputs(self.served.manifest)


def choose(models: ServedModels, path: Mapping[str, str]) -> Chosen:
    """The model that the path names; without a version, the newest."""
    name, _, function = path["name"].rpartition(".")
    if function in FUNCTIONS and name in models.loaded:
        served = models.choose(f"{name}@{path['version']}" if "version" in path else name)
        if FUNCTIONS[function].has(served.manifest):
            return Chosen(served, function)
    there = ", ".join(dict.fromkeys(each.full_name for each in every(models)))
    raise UnknownModel(f"There is no model {path['name'][:80]!r} here; there are {there}.")


def every(models: ServedModels) -> list[Chosen]:
    """All that the loaded models can do, by name and version."""
    return [
        Chosen(served, function)
        for _, versions in sorted(models.loaded.items())
        for _, served in sorted(versions.items())
        for function, its in FUNCTIONS.items()
        if its.has(served.manifest)
    ]
