"""New images from the prior."""

from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from service.core.admission import admit
from service.core.models import Model
from service.core.problems import InvalidRequest, NoPrior, TooLarge
from service.core.service import Service
from service.operations import fields
from service.operations.answer import Answer
from service.operations.examples import SQUARE
from service.operations.fields import LIST, First, Latent, Seed, new_seed, refuse
from service.operations.operation import Array, Example, Inputs, Operation, Outputs
from vaeserve.bundle.arrays import Floats
from vaeserve.bundle.noise import SEEDS
from vaeserve.bundle.prior import Prior, PriorKind


def _text(value: Any) -> Any:
    """The number of a label may be sent as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class SampleOptions(fields.Options):
    """Query parameters of /sample."""

    n: int = Field(1, ge=1, description="How many images. GET /models/{name} shows the limit.")
    seed: Seed = None
    first: First = 0
    temperature: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Scales the deviation of the latents: 1 is the model's prior, 0 its mean.",
    )
    prior: Annotated[
        PriorKind | None,
        Field(
            description="`flow` was trained with the model, `mixture` was fitted to the latents of the "
            "training images, `normal` is N(0, I). Default: the model's own choice."
        ),
    ] = None
    label: Annotated[
        Annotated[str, Field(max_length=256)] | None,
        BeforeValidator(_text),
        Field(
            description="Only images of this label: one of the manifest's `labels`, or its number, from 0."
        ),
    ] = None
    truncation: float | None = Field(
        None,
        ge=0.01,
        le=10,
        description="Cuts the noise off at ± this many deviations, for typical images instead of rare ones.",
    )
    return_: Annotated[list[Literal["latents"]], LIST] = Field(
        [], alias="return", description="`latents` adds the latents that were decoded."
    )


class SampleAnswer(fields.Result):
    """Images drawn from the model's prior."""

    images: list[str] = Field(description="PNG files in base64")
    seed: int
    latents: list[Latent] | None = None


async def sample(service: Service, model: Model, options: SampleOptions) -> Answer:
    """New images from the model's prior.

    The same seed gives the same images on every machine, and the first of n images is the one of n = 1.
    `first` selects the n images from that row of the seed on.
    """
    if options.n > (most := service.settings.max_samples):
        raise TooLarge(f"n = {options.n} is more than the {most} of one request; send several.")
    prior, label = _prior(model), _label(model, options)
    seed = new_seed(options.seed)
    admit(options.n)
    draw = partial(
        prior.sample,
        seed=seed,
        rows=range(options.first, options.first + options.n),
        temperature=options.temperature,
        kind=options.prior,
        label=label,
        truncation=options.truncation,
        transform=False,
    )
    noise = await service.run(options.n * model.manifest.latent.size, draw)
    latents = await model.transform(noise, prior.resolve(options.prior, label))
    arrays: dict[str, NDArray[Any]] = {"images": await model.decode(latents)}
    if "latents" in options.return_:
        arrays["latents"] = latents
    return Answer(arrays, seed)


async def sample_seeds(
    service: Service, model: Model, options: SampleOptions, seeds: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The images [n, h, w, c] and latents of n = 1 for each of `seeds` [n]; `options.seed` is not used."""
    if not ((seeds >= 0) & (seeds < SEEDS)).all():
        raise InvalidRequest("`seed` must be from 0 to 2^53 - 1.")
    prior, label = _prior(model), _label(model, options)

    def draw() -> Floats:
        return np.concatenate(
            [
                prior.sample(
                    seed=int(seed),
                    rows=range(options.first, options.first + 1),
                    temperature=options.temperature,
                    kind=options.prior,
                    label=label,
                    truncation=options.truncation,
                    transform=False,
                )
                for seed in seeds
            ]
        )

    noise = await service.run(len(seeds) * model.manifest.latent.size, draw)
    latents = await model.transform(noise, prior.resolve(options.prior, label))
    return {"images": await model.decode(latents), "latents": latents}


def _prior(model: Model) -> Prior:
    if model.prior is None:
        raise NoPrior(
            f"{model.manifest.reference} has no prior to sample from; publish a version with one, or send "
            "latents to /decode."
        )
    return model.prior


def _label(model: Model, options: SampleOptions) -> int | None:
    """The number of the label to sample, given by name or by number."""
    label, prior = options.label, _prior(model)
    reference, names = model.manifest.reference, model.manifest.labels or ()
    if options.prior and options.prior not in prior.kinds:
        kinds = ", ".join(prior.kinds)
        raise refuse("prior", f"is {options.prior!r}, which {reference} does not have; it has {kinds}")
    if label is None:
        return None
    if options.prior not in (None, "mixture"):
        raise refuse("label", f"cannot be combined with the prior {options.prior!r}; leave out `prior`")
    if not prior.by_label:
        raise refuse("label", f"is not possible: {reference} was published without labels")
    if label in names:
        number = names.index(label)
    else:
        number = int(label) if label.isascii() and label.isdecimal() else -1
    if number not in prior.by_label:
        known = ", ".join(names[each] for each in sorted(prior.by_label)[:20])
        raise refuse("label", f"is {label!r}, which {reference} does not know; it knows {known}")
    return number


SAMPLE = Operation(
    "sample",
    sample,
    SampleOptions,
    SampleAnswer,
    Inputs.NOTHING,
    Outputs.PICTURES,
    requests=lambda _: [
        Example("seeded", "Four images, the same ones every time", {"n": 4, "seed": 7}),
        Example("nearer", "Nearer to the mean image", {"n": 4, "temperature": 0.5, "return": ["latents"]}),
    ],
    answers=lambda its: [
        Example("image", "One image", {"model": its.reference, "images": [SQUARE], "seed": 7})
    ],
    methods=("GET", "POST"),
    cacheable=lambda options: cast(SampleOptions, options).seed is not None,
    arrays=lambda its: {
        "images": Array(np.uint8, its.image.shape),
        "latents": Array(np.float32, its.latent.shape),
    },
    available=lambda its: its.prior is not None,
)
