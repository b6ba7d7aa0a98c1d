"""What a training run is told: one frozen record that round-trips JSON and is kept beside every checkpoint.

A field that is None is filled from the data when the run starts (`resolve`), so that the `config.json` of a
run says everything needed to build its network again.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

Fit = Literal["cover", "contain", "stretch"]
Likelihood = Literal["bernoulli", "gaussian", "logistic"]
Prior = Literal["normal", "flow", "mixture"]
Activation = Literal["pre", "post"]
Precision = Literal["auto", "float32", "bfloat16"]

# Pixels seen in a run, from which torch.compile is worth it: on one core it takes 20 s (some CPUs: 100 s) and
# then saves 6 to 8 % of the time, which is 26 minutes for so many pixels at the reference network.
COMPILING_PAYS = 2e9


class ConfigError(ValueError):
    """A setting that cannot be trained with; the message says which and what would do."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's weights, apart from the images themselves."""

    data: str = "digits"
    name: str | None = None  # of the model; None: the data's name
    epochs: int | None = None  # None: by the size of the data, see `default_epochs`
    batch: int = 128
    lr: float = 2e-3  # peak, after warm-up
    seed: int = 0
    latent: int | None = None  # None: by the image's size, see `default_latent`
    width: int = 32  # the one dial of the network: channels of its first stage
    activation: Activation = "pre"  # within a residual block, or also after its sum
    image_size: tuple[int, int] | None = None  # height, width; None: the data's own
    channels: int | None = None  # 1 or 3; None: the data's own
    fit: Fit = "contain"  # how images of another shape are brought to `image_size`
    memory_limit: int = 1000  # MB of decoded images; more of them lie in a file that is mapped
    likelihood: Likelihood | Literal["auto"] = "auto"
    levels: int | None = None  # distinct values of a pixel, for the logistic; always the data's own
    prior: Prior = "normal"  # that the rate is taken under; the others are trained together with the rest
    flow_blocks: int = 8
    flow_hidden: int = 256  # units of both hidden layers of each block
    components: int = 50  # of a mixture
    iwae: int = 1  # samples of each image in the bound that is trained; 1 is the ELBO
    beta: float = 1.0  # weight of the rate in the loss; 1 is the ELBO, and validation is always at 1
    free_bits: float = 0.0  # nats of each latent dimension's mean rate that the loss does not count
    device: str = "auto"
    compile: bool | None = None  # None: where the run is long enough, see `COMPILING_PAYS`
    precision: Precision = "auto"  # of the network in training; auto: what is fast on the processor
    ema: float = 0.999  # decay of the averaged weights: those are evaluated and exported
    weight_decay: float = 0.01  # on conv and linear weights only
    betas: tuple[float, float] = (0.9, 0.99)
    lr_warmup: float = 0.02  # fraction of all steps
    kl_warmup: float = 0.05  # fraction of all steps
    # Gradient norms scale with the number of pixels and with 1/σ, so both bounds are multiples of the running
    # median norm: one setting for every image size.
    clip_factor: float = 3.0
    skip_factor: float = 20.0
    patience: int = 10  # evaluations without a better validation ELBO, then the run ends; 0: never
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        for field, good in {
            "epochs": self.epochs is None or self.epochs >= 1,
            "batch": self.batch >= 1,
            "lr": 0 < self.lr < math.inf,
            "seed": 0 <= self.seed < 2**53,  # a JSON number, exactly
            "latent": self.latent is None or self.latent >= 1,
            "width": self.width >= 1,
            "activation": self.activation in ("pre", "post"),
            "image_size": self.image_size is None or min(self.image_size) >= 4,
            "channels": self.channels in (None, 1, 3),
            "fit": self.fit in ("cover", "contain", "stretch"),
            "memory_limit": self.memory_limit >= 0,
            "likelihood": self.likelihood in ("auto", "bernoulli", "gaussian", "logistic"),
            "levels": self.levels is None or 2 <= self.levels <= 256,
            "prior": self.prior in ("normal", "flow", "mixture"),
            "flow_blocks": self.flow_blocks >= 1,
            "flow_hidden": self.flow_hidden >= 1,
            "components": self.components >= 1,
            "iwae": self.iwae >= 1,
            "precision": self.precision in ("auto", "float32", "bfloat16"),
            "beta": 0 <= self.beta < math.inf,
            "free_bits": 0 <= self.free_bits < math.inf,
            "ema": 0 <= self.ema < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "lr_warmup": 0 <= self.lr_warmup <= 1,
            "kl_warmup": 0 <= self.kl_warmup <= 1,
            "clip_factor": self.clip_factor > 0,
            "skip_factor": self.skip_factor > 1,
            "patience": self.patience >= 0,
            "checkpoint_seconds": self.checkpoint_seconds >= 0,
        }.items():
            if not good:
                raise ConfigError(f"{field} cannot be {getattr(self, field)!r}")
        if self.prior != "normal" and self.free_bits:
            raise ConfigError(f"a {self.prior} has no rate of a single dimension: leave out --free-bits")
        if self.prior == "flow" and self.latent == 1:
            raise ConfigError("a flow moves some dimensions by others: --latent must be at least 2")
        if self.iwae > 1 and (self.beta != 1 or self.free_bits):
            raise ConfigError("a bound of several samples has no --beta and no --free-bits: leave them out")
        if self.iwae > 1 and self.compile:
            raise ConfigError("--iwae changes gradients on their way back: leave out --compile")

    @property
    def kind(self) -> Likelihood:
        """The likelihood of a resolved config."""
        assert self.likelihood != "auto"
        return self.likelihood

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` takes them back."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Refuses unknown fields: a config of a newer version must not be half understood (ConfigError)."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"unknown settings {', '.join(unknown)}: made by a newer vaeserve?")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        return cls.from_dict(json.loads(text))


def resolve(
    config: TrainConfig,
    *,
    name: str,
    train: int,
    image: tuple[int, int, int],
    binary: bool,
    levels: int = 256,
) -> TrainConfig:
    """Fill every None from the data: its name, its number of training images, (height, width, channels),
    whether its pixels are all 0 or 255 (then `likelihood: auto` is Bernoulli, else Gaussian), and how many
    values they have.

    Raises ConfigError when the config names another image shape than the data has.
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
    batch = min(config.batch, train)
    epochs = config.epochs or default_epochs(train // batch)
    long = epochs * train * math.prod(image) >= COMPILING_PAYS
    return dataclasses.replace(
        config,
        name=config.name or name,
        batch=batch,
        epochs=epochs,
        compile=long and config.iwae == 1 if config.compile is None else config.compile,
        latent=config.latent or default_latent(height, width),
        image_size=(height, width),
        channels=channels,
        likelihood=likelihood,
        levels=levels,
    )


def default_latent(height: int, width: int) -> int:
    """Literature uses 40–50 dimensions on 28², 64 on 32² and 128 on 64²; unused ones cost no rate."""
    side = math.sqrt(height * width)
    return next((d for limit, d in ((8, 16), (28, 32), (40, 64), (80, 128)) if side <= limit), 256)


def default_epochs(steps_per_epoch: int) -> int:
    """About 10 000 steps, each image is seen at least 10 and at most 80 times (then small sets over-fit)."""
    return min(max(round(10_000 / steps_per_epoch), 10), 80)
