"""Operations as models of the Open Inference Protocol: `mnist.encode` is the operation encode of mnist.

A model of that protocol has one set of inputs and outputs. Its tensors are called what the graphs call them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.core.models import Model, Models
from service.core.problems import InvalidRequest, UnknownModel
from service.core.service import Service
from service.oip.tensors import Inference, Spec
from service.operations.fields import Options
from service.operations.operation import Inputs, Operation, all_operations
from service.operations.sample import SAMPLE, sample_seeds
from vaeserve.bundle.manifest import Manifest

Arrays = Mapping[str, NDArray[Any]]
Specs = tuple[Spec, ...]

# What an operation calls `images` and `latents`, the graphs call `image` and `z`.
NAMES = {"images": "image", "latents": "z"}
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
# Operations that run one graph once; statistics count those of the graph.
GRAPHS = {"encode": "encoder", "decode": "decoder"}
# Without a seed each request would be answered differently, which clients of the protocol do not expect.
DEFAULTS = {"score": {"seed": 0}}


@dataclass(frozen=True)
class Function:
    """One operation of one version of a model: a model of the protocol."""

    model: Model
    operation: Operation
    inputs: Specs
    outputs: Specs

    @property
    def full_name(self) -> str:
        return f"{self.model.manifest.name}.{self.operation.name}"

    @property
    def version(self) -> str:
        return str(self.model.manifest.version)

    @property
    def labels(self) -> tuple[str, str, str]:
        """The labels of its counters."""
        return self.model.manifest.name, self.version, self.operation.name

    @property
    def graph(self) -> str | None:
        """The one graph that it runs; None if it takes several steps."""
        return GRAPHS.get(self.operation.name)

    async def run(self, service: Service, request: Inference) -> Arrays:
        """The output tensors by name, [n, *row]."""
        options = self._options(request.parameters)
        if self.operation is SAMPLE:
            seeds = request.inputs["seed"][:, 0]
            arrays = await sample_seeds(service, self.model, options, seeds)
        else:
            (rows,) = request.inputs.values()
            arrays = (await self.operation.run(service, self.model, options, rows)).arrays
        named = {NAMES.get(name, name): array for name, array in arrays.items()}
        return {spec.name: named[spec.name].reshape(-1, *spec.row) for spec in self.outputs}

    def _options(self, parameters: Mapping[str, Any]) -> Any:
        """The operation's options among the parameters of a request, whose other names mean nothing here."""
        given = {name: parameters[name] for name in _OPTIONS[self.operation.name] & parameters.keys()}
        if not given:
            return _DEFAULTS[self.operation.name]
        try:
            return self.operation.options.model_validate(
                {**DEFAULTS.get(self.operation.name, {}), **given, **self.operation.array_options},
                strict=True,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise InvalidRequest(f"The parameter `{first['loc'][0]}` is wrong: {first['msg']}.") from None


def _names(options: type[Options]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in options.model_fields.items())


# The operations whose answers have one row for each row of input.
OPERATIONS = {each.name: each for each in all_operations() if each.has_rows}
# Options that change nothing that the tensors show.
_FIXED = {"model", "return", "n", "k", "false_positive_rate"}
_OPTIONS = {
    name: _names(each.options) - _FIXED - ({"seed"} if each is SAMPLE else set())
    for name, each in OPERATIONS.items()
}
_DEFAULTS = {
    name: each.options.model_validate({**DEFAULTS.get(name, {}), **each.array_options})
    for name, each in OPERATIONS.items()
}


def resolve(models: Models, path: Mapping[str, str]) -> Function:
    """The model that the path names; without a version, the newest."""
    name, _, operation = path["name"].rpartition(".")
    if operation in OPERATIONS and name in models.loaded:
        model = models.resolve(f"{name}@{path['version']}" if "version" in path else name)
        if OPERATIONS[operation].available(model.manifest):
            return _function(model, OPERATIONS[operation])
    there = ", ".join(dict.fromkeys(each.full_name for each in all_functions(models)))
    raise UnknownModel(f"There is no model {path['name'][:80]!r} here; there are {there}.")


def all_functions(models: Models) -> list[Function]:
    """Everything that the loaded models can do, by name and version."""
    return [
        _function(model, operation)
        for _, versions in sorted(models.loaded.items())
        for _, model in sorted(versions.items())
        for operation in OPERATIONS.values()
        if operation.available(model.manifest)
    ]


def _function(model: Model, operation: Operation) -> Function:
    manifest = model.manifest
    return Function(model, operation, _inputs(operation, manifest), _outputs(operation, manifest))


def _inputs(operation: Operation, manifest: Manifest) -> Specs:
    match operation.inputs:
        case Inputs.IMAGES:
            return (Spec("image", "UINT8", manifest.image.shape),)
        case Inputs.LATENTS:
            return (Spec("z", "FP32", manifest.latent.shape),)
        case _:
            return (Spec("seed", "INT64", (1,)),)


def _outputs(operation: Operation, manifest: Manifest) -> Specs:
    return tuple(
        Spec(NAMES.get(name, name), DATATYPES[np.dtype(array.dtype).name], array.row)
        for name, array in operation.arrays(manifest).items()
    )
