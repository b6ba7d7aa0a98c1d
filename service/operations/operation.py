"""The declaration of an operation: one thing that a user can ask a model for.

A module of this package with an `Operation` in it is all that an operation needs. REST routes, models of the
Open Inference Protocol, the OpenAPI document and its examples are derived from the declaration.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple, cast

import numpy as np
from pydantic import BaseModel, create_model

from service import operations
from service.operations.answer import Answer
from service.operations.fields import ImagesBody, JsonBody, LatentsBody, Options, PointsBody
from vaeserve.bundle.manifest import Manifest


class Inputs(Enum):
    """What an operation computes on."""

    NOTHING = "nothing"
    IMAGES = "images"  # uint8 [n, h, w, c]
    LATENTS = "latents"  # float32 [n, *latent]
    POINT = "point"  # `Points`; a body may be a single image file
    POINTS = "points"  # `Points`, of which there must be several


class Outputs(Enum):
    """The forms in which an answer can be written."""

    ARRAYS = "arrays"
    PICTURES = "pictures"  # arrays, or one picture
    ANIMATION = "animation"  # arrays, one picture, or its frames one after the other
    MAP = "map"  # arrays, or a sheet of thumbnails


class Example(NamedTuple):
    """One example of the API page: `name` is unique within its operation, `value` is JSON."""

    name: str
    summary: str
    value: dict[str, Any]


class Array(NamedTuple):
    """What one row of an answer's array has: the type and the shape of a row."""

    dtype: type[np.generic]
    row: tuple[int, ...] = (1,)


# The fields of a JSON body that carry the inputs.
_FIELDS: dict[Inputs, type[JsonBody]] = {
    Inputs.NOTHING: JsonBody,
    Inputs.IMAGES: ImagesBody,
    Inputs.LATENTS: LatentsBody,
    Inputs.POINT: PointsBody,
    Inputs.POINTS: PointsBody,
}


def _nothing(_: Manifest) -> Mapping[str, Array]:
    return {}


def _always(_: Manifest) -> bool:
    return True


@dataclass(frozen=True)
class Operation:
    """One thing that a user can ask a model for.

    `run(service, model, options, *inputs)` computes the `Answer`; its docstring is the page's text. `inputs`
    are checked and fit the model. `requests` and `answers` give examples for a model; `requests` are JSON
    bodies.
    """

    name: str  # the last segment of its path
    run: Callable[..., Awaitable[Answer]]
    options: type[Options]
    result: type[BaseModel]  # the answer as JSON
    inputs: Inputs
    outputs: Outputs
    requests: Callable[[Manifest], Iterable[Example]]
    answers: Callable[[Manifest], Iterable[Example]]
    tag: str = "Images"
    methods: tuple[str, ...] = ("POST",)
    default_model: bool = True  # whether there is a path without a model's name
    # Whether `run` also takes the files that the images came from, a list with None for an array.
    takes_files: bool = False
    # Whether the same request always has the same answer, which the client may then keep.
    cacheable: Callable[[Options], bool] = lambda _: False
    # Typed protocols: the arrays of an answer that has one row for each input row, and the options that yield
    # them.
    arrays: Callable[[Manifest], Mapping[str, Array]] = _nothing
    array_options: Mapping[str, Any] = field(default_factory=dict)
    available: Callable[[Manifest], bool] = _always

    @property
    def has_rows(self) -> bool:
        """Whether its answer has one row for each row of input, as typed protocols need it."""
        return self.arrays is not _nothing

    @cached_property
    def body(self) -> type[JsonBody]:
        """The JSON body: the fields of the inputs, and the options, which may be in the query instead."""
        bases: tuple[type[Any], ...] = (_FIELDS[self.inputs], self.options)
        body = create_model(
            f"{self.name.capitalize()}Body", __base__=bases, __doc__=f"JSON body of /{self.name}."
        )
        return cast(type[JsonBody], body)


def all_operations() -> tuple[Operation, ...]:
    """Every `Operation` that a module of this package declares, by tag and name."""
    modules = (
        import_module(f"{operations.__name__}.{each.name}") for each in iter_modules(operations.__path__)
    )
    found = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Operation)
    }
    return tuple(sorted(found.values(), key=lambda each: (each.tag, each.name)))
