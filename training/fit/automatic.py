"""The settings that a run measures at its start: precision, latent dimensions, epochs and augmentation."""

import time
from collections.abc import Callable

import torch

from training.config import Augmentation, TrainConfig, default_epochs, resolve
from training.data.images import Images
from training.data.spectrum import latent_size
from training.fit import augment, schedule, state, step
from training.fit.batches import Pixels, draw
from training.fit.distributed import Ranks
from training.fit.precision import cast, resolve_precision
from training.fit.threads import threads
from training.model.networks import VAE

TRIAL = 4  # steps that are timed; the first one is slower and does not count


def resolved(
    config: TrainConfig,
    data: Images,
    ranks: Ranks,
    build: Callable[[TrainConfig], VAE],
    note: Callable[[str], None],
) -> TrainConfig:
    """The config with everything filled that it leaves open. `note` receives the reasons.

    Raises ConfigError for a config that does not fit the data.
    """
    train = len(data.split.train)

    def filled(config: TrainConfig, latent: int = 1) -> TrainConfig:
        return resolve(
            config,
            name=data.name,
            train=train,
            image=data.shape,
            binary=data.binary,
            levels=data.levels,
            latent=latent,
        )

    shape = filled(config)  # refuses what does not fit before anything is measured
    config = config.replace(precision=resolve_precision(config.precision, ranks.device(config.device)))
    if config.latent is None:
        latent, left = latent_size(data, config.seed)
        note(
            f"--latent {latent}: as many principal components leave {left:.1%} of the variance of "
            f"the validation images ({train:,} images to learn from)"
        )
        config = config.replace(latent=latent)
    if config.epochs is None:
        steps = default_epochs(train // shape.images_per_step)
        speed = ranks.size * _images_per_second(filled(config.replace(compile=False)), data, ranks, build)
        fits = max(1, int(60 * config.minutes * speed / train))
        config = config.replace(epochs=min(steps, fits))
        why = f"all that fits into --minutes {config.minutes:g}" if fits < steps else "enough for this set"
        note(f"--epochs {config.epochs}: {why}, at {speed:,.0f} images/s")
    config = filled(config)
    if config.augmentation is None:
        config = config.replace(augmentation=_augmentation(config, data))
        if config.augment != "none":
            note(f"augmentation: {config.augmentation} (--augment {config.augment})")
    return config


def _augmentation(config: TrainConfig, data: Images) -> Augmentation:
    assert config.epochs is not None
    return augment.choose(
        config.augment, config.epochs, lambda: augment.fitting(data.pixels, data.split.train, config.seed)
    )


def _images_per_second(
    config: TrainConfig, data: Images, ranks: Ranks, build: Callable[[TrainConfig], VAE]
) -> float:
    """The speed of one process, measured in a few steps of a network that is thrown away."""
    device = ranks.device(config.device)
    now = state.start(build(config), config, device)
    forward = cast(now.network, config.precision, device)
    plan = schedule.plan(config, len(data.split.train), len(data.split.validation))
    rows = data.split.train[: config.images_per_step]
    pixels, alone, seconds = Pixels(data, device), Ranks(), []
    with threads(config):
        for number in range(TRIAL):
            start = time.perf_counter()
            images, eps = draw(config, pixels, rows, alone, "step", number)
            step.train_step(config, plan, now, forward, images, eps, alone)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return len(rows) / min(seconds[1:])
