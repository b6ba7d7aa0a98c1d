"""The settings of a training run: the one list from which the command line and its help are made.

A config is frozen, round-trips through JSON and is saved with every checkpoint. Fields that are None are
filled from the data when the run starts (`resolve`), so the `config.json` of a run is enough to rebuild its
network.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

Fit = Literal["cover", "contain", "stretch"]
Likelihood = Literal["bernoulli", "gaussian", "logistic"]
Prior = Literal["normal", "flow", "mixture"]
Activation = Literal["pre", "post"]
Precision = Literal["auto", "float32", "bfloat16"]
Augment = Literal["auto", "none", "light"]

# Pixels seen in a run, from which torch.compile is worth it: on one core it takes 20 s (some CPUs: 100 s) and
# then saves 6 to 8 % of the time, which is 26 minutes for so many pixels at the reference network. Of larger
# images the convolutions take nearly all of the time: 193 images/s with it and 199 without, at 64×64×3.
COMPILING_PAYS = 2e9
COMPILED_IMAGE = 4096  # pixels of an image, at most
# What `--resume` may change: epochs extend the run, the others do not decide about the weights.
CHANGEABLE = frozenset({"epochs", "data", "device", "memory_limit", "checkpoint_seconds"})


class ConfigError(Exception):
    """A setting that cannot be used. The message names it and says what to do."""


@dataclass(frozen=True)
class Flag:
    """Marks a field that is a flag of `vae-train fit`, with its help.

    `default` describes what None stands for; `metavar` replaces the type in the help. `text`: the value is
    written as text, which the field parses. Fields without a Flag can be set from Python alone.
    """

    help: str
    default: str = ""
    metavar: str | None = None
    text: bool = False


def _size(value: Any) -> Any:
    """`64x48` is a height of 64 and a width of 48."""
    if not isinstance(value, str):
        return value
    height, cross, width = value.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ValueError("write HxW, for instance 64x48")
    return int(height), int(width)


_Side = Annotated[int, Field(ge=4)]


class Augmentation(BaseModel):
    """Random changes of training images. Each is uniform between -amount and amount; without any: none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mirror: bool = False  # left and right, half of the images
    shift: float = 0.0  # share of each side
    rotation: float = 0.0  # degrees
    scale: float = 0.0  # 0.1: between 1/1.1 and 1.1 times the size
    brightness: float = 0.0  # added to pixels in [0, 1]
    contrast: float = 0.0  # 0.2: between 0.8 and 1.2 times the distance to the image's mean

    @property
    def amounts(self) -> dict[str, float]:
        """All changes but the mirror image, by name."""
        return self.model_dump(exclude={"mirror"})

    def __str__(self) -> str:
        parts = [f"{name} {amount:.3g}" for name, amount in self.amounts.items() if amount]
        return ", ".join(parts + ["mirror images"] * self.mirror) or "none"


NO_AUGMENTATION = Augmentation()


class TrainConfig(BaseModel):
    """Everything that determines the weights of a run, apart from the images themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[
        str, Flag("digits (built in), mnist, fashion-mnist, a folder of images, or a .npz or .npy file.")
    ] = "digits"
    name: Annotated[str | None, Flag("Name of the model.", "the name of the data")] = None
    epochs: Annotated[
        int | None, Field(ge=1), Flag("Passes over the training images.", "about 10 000 steps")
    ] = None
    minutes: Annotated[
        float, Field(gt=0), Flag("Longest training on this machine, unless --epochs is given.")
    ] = 30.0
    batch: Annotated[
        int | None, Field(ge=1), Flag("Images per step.", "32 to 128, by the number of images")
    ] = None
    lr: Annotated[float, Field(gt=0), Flag("Peak learning rate, after warm-up.")] = 2e-3
    # At most a JSON number that is exact.
    seed: Annotated[int, Field(ge=0, lt=2**53), Flag("Decides weights, order and noise.")] = 0
    latent: Annotated[
        int | None,
        Field(ge=1),
        BeforeValidator(lambda value: None if value == "auto" else value),
        Flag("Latent dimensions.", "auto, from the variance of the images", metavar="auto|D", text=True),
    ] = None
    width: Annotated[int, Field(ge=1), Flag("The one dial of the network: channels of its first stage.")] = 32
    activation: Annotated[
        Activation, Flag("Activation of residual blocks: pre reconstructs better, post embeds better.")
    ] = "pre"
    linear: bool | None = None  # whether the network has a linear path; None: if the images are nearly linear
    image_size: Annotated[
        tuple[_Side, _Side] | None,
        BeforeValidator(_size),
        Flag("Size to which images are resized.", "the size of the data", metavar="HxW", text=True),
    ] = None
    channels: Annotated[
        Literal[1, 3] | None,
        BeforeValidator(lambda value: int(value) if value in ("1", "3") else value),
        Flag("Grey or colour.", "the channels of the data", metavar="1|3", text=True),
    ] = None
    fit: Annotated[Fit, Flag("How images of another aspect ratio are resized.")] = "contain"
    augment: Annotated[
        Augment,
        Flag("Random changes of training images. auto: those after which images still look like the set."),
    ] = "auto"
    augmentation: Augmentation | None = None  # what `augment` means for the data
    init: Annotated[
        str | None,
        Flag("Start from the weights of a bundle or checkpoint, with its network.", metavar="FOLDER"),
    ] = None
    memory_limit: Annotated[
        int,
        Field(ge=0),
        Flag("Above this size, decoded images are kept in a memory-mapped file.", metavar="MB"),
    ] = 1000
    likelihood: Annotated[
        Likelihood | Literal["auto"], Flag("auto: bernoulli for black-and-white images, else gaussian.")
    ] = "auto"
    levels: Annotated[int | None, Field(ge=2, le=256)] = None  # values of a pixel; always those of the data
    prior: Annotated[
        Prior, Flag("normal is N(0, I); flow (a RealNVP) and mixture are trained together with the model.")
    ] = "normal"
    flow_blocks: Annotated[int, Field(ge=1)] = 8
    flow_hidden: Annotated[int, Field(ge=1)] = 256  # units of both hidden layers of each block
    components: Annotated[int, Field(ge=1)] = 50  # of a mixture
    iwae: Annotated[
        int, Field(ge=1), Flag("Samples per image of the training bound; 1 is the ELBO.", metavar="K")
    ] = 1
    free_bits: Annotated[
        float,
        Field(ge=0),
        Flag("Rate of each latent dimension that the loss does not count.", metavar="NATS"),
    ] = 0.0
    # Validation is always at 1.
    beta: Annotated[float, Field(ge=0), Flag("Weight of the rate in the loss; 1 is the ELBO.")] = 1.0
    device: Annotated[str, Flag("auto, cpu, cuda, …")] = "auto"
    compile: Annotated[bool | None, Flag("Use torch.compile.", "for long runs on small images")] = None
    precision: Annotated[Precision, Flag("auto: bfloat16 on a CPU that multiplies in it, else float32.")] = (
        "auto"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay of the averaged weights, which are published
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # on convolutions and linear layers only
    betas: tuple[float, float] = (0.9, 0.99)
    lr_warmup: Annotated[float, Field(ge=0, le=1)] = 0.02  # fraction of all steps
    kl_warmup: Annotated[float, Field(ge=0, le=1)] = 0.05  # fraction of all steps
    # Gradient norms scale with the number of pixels and with 1/σ, so both bounds are multiples of the running
    # median norm: one setting for every image size.
    clip_factor: Annotated[float, Field(gt=0)] = 3.0
    skip_factor: Annotated[float, Field(gt=1)] = 20.0
    patience: Annotated[
        int,
        Field(ge=0),
        Flag("Validations without a better ELBO after which the run ends; 0: never end early."),
    ] = 10
    evaluate_every: Annotated[int | None, Field(ge=1)] = None  # steps; None: 20 to 40 times a run
    extended_at: Annotated[int, Field(ge=0)] = 0  # the step from which --epochs extended a finished run
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0])
            value = values.get(field) if isinstance(values, Mapping) else None
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{_named(field)} cannot be {value!r}: {reason}") from None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prior != "normal" and self.free_bits:
            raise ConfigError(f"--prior {self.prior} has no rate per dimension; leave out --free-bits")
        if self.prior == "flow" and self.latent == 1:
            raise ConfigError("--prior flow moves some dimensions by others; set --latent to 2 or more")
        if self.iwae > 1 and (self.beta != 1 or self.free_bits):
            raise ConfigError("--iwae above 1 trains a bound without --beta and --free-bits; leave those out")
        if self.iwae > 1 and self.compile:
            raise ConfigError("--iwae changes gradients on their way back; leave out --compile")
        return self

    @property
    def images_per_step(self) -> int:
        """The batch of a resolved config."""
        assert self.batch is not None
        return self.batch

    @property
    def kind(self) -> Likelihood:
        """The likelihood of a resolved config."""
        assert self.likelihood != "auto"
        return self.likelihood

    def replace(self, **changes: Any) -> Self:
        """A config with other values, checked like a new one (ConfigError).

        What neither has set stays unset: a resumed run compares only what was asked for.
        """
        asked = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(asked | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` takes them back."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The content of `config.json`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ConfigError for unknown fields: a config of a newer version must not be half understood."""
        if unknown := sorted(set(values) - set(cls.model_fields)):
            raise ConfigError(f"unknown settings {', '.join(unknown)}: made by a newer vaeserve?")
        return cls.model_validate(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config of a `config.json`."""
        return cls.from_dict(json.loads(text))


def flags() -> dict[str, Flag]:
    """The flags of `vae-train fit` by the name of their field, in the order of the fields."""
    return {
        name: flag
        for name, field in TrainConfig.model_fields.items()
        for flag in field.metadata
        if isinstance(flag, Flag)
    }


def _named(field: str) -> str:
    return f"--{field.replace('_', '-')}" if field in flags() else f"`{field}`"


def resolve(
    config: TrainConfig,
    *,
    name: str,
    train: int,
    image: tuple[int, int, int],
    binary: bool,
    levels: int = 256,
    latent: int = 32,
) -> TrainConfig:
    """The config with every None filled from the data, except for what is measured (training.fit.automatic).

    `name` is the name of the data, `train` its number of training images, `image` (height, width, channels),
    `levels` how many values its pixels have. `binary`: they are all 0 or 255, so `likelihood: auto` is
    Bernoulli, else Gaussian. `latent` is the number of latent dimensions unless the config has one.
    ConfigError when the config names another image shape than the data has.
    """
    height, width, channels = image
    if config.image_size not in (None, (height, width)) or config.channels not in (None, channels):
        raise ConfigError(
            f"the images are {height}x{width} with {channels} channels, the config says "
            f"{config.image_size} with {config.channels}: load the data with the config's image size"
        )
    likelihood = config.likelihood
    if likelihood == "auto":
        likelihood = "bernoulli" if binary else "gaussian"
    batch = min(config.batch or default_batch(train), train)
    epochs = config.epochs or default_epochs(train // batch)
    long = epochs * train * math.prod(image) >= COMPILING_PAYS and math.prod(image) <= COMPILED_IMAGE
    return config.replace(
        name=config.name or name,
        batch=batch,
        epochs=epochs,
        compile=long and config.iwae == 1 if config.compile is None else config.compile,
        latent=config.latent or latent,
        image_size=(height, width),
        channels=channels,
        likelihood=likelihood,
        levels=levels,
    )


def resumed(saved: TrainConfig, asked: TrainConfig, step: int) -> TrainConfig:
    """The config with which a run continues after `step` steps: `saved`, with what `asked` may change.

    More epochs extend the run: the learning rate follows the longer schedule, and warm-ups are not repeated.
    ConfigError names any other setting that `asked` sets to another value.
    """
    changed = {
        name: value
        for name in asked.model_fields_set
        if (value := getattr(asked, name)) not in (None, "auto") and value != getattr(saved, name)
    }
    if fixed := sorted(changed.keys() - CHANGEABLE):
        raise ConfigError(
            f"the run has {', '.join(f'{_named(name)} {getattr(saved, name)}' for name in fixed)}, which "
            f"cannot become {', '.join(str(changed[name]) for name in fixed)}: leave it out, "
            "or start a new --run, with --init if it shall start from these weights"
        )
    epochs = changed.get("epochs")
    if epochs is not None and saved.epochs is not None:
        shorter = saved.epochs / epochs
        changed |= {
            "extended_at": step,
            "kl_warmup": saved.kl_warmup * shorter,
            "lr_warmup": saved.lr_warmup * shorter,
        }
        if shorter > 1:
            raise ConfigError(f"the run has {saved.epochs} epochs: --epochs can only be more than that")
    return saved.replace(**changed)


def default_batch(train: int) -> int:
    """Fewer images per step for a small set: the same time then has more steps."""
    return next((batch for fewer, batch in ((1_000, 32), (10_000, 64)) if train < fewer), 128)


def default_epochs(steps_per_epoch: int) -> int:
    """About 10 000 steps, but at least 10 and at most 500 epochs."""
    return min(max(round(10_000 / steps_per_epoch), 10), 500)
