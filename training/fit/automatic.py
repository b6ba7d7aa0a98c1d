"""The settings that a run measures at its start: precision, latent dimensions, epochs and augmentation."""

import math
import statistics
import time
from collections.abc import Callable

import torch

from training.config import Augmentation, TrainConfig, default_epochs, resolve
from training.data.images import Images
from training.data.spectrum import LEFT, latent_size, variance_left
from training.fit import augment, schedule, state, step
from training.fit.batches import Pixels, draw
from training.fit.distributed import Ranks
from training.fit.precision import cast, resolve_precision
from training.fit.threads import threads
from training.model.networks import VAE

TRIAL = 4  # steps that are timed at least; the first one is slower and does not count
TRIAL_SECONDS = 5.0  # of further steps, if --minutes decides: a shared machine is slow for a second or two
SMALL = 10_000  # training images
TRAINING = 0.95  # share of the time that validation leaves


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
    left = None
    if config.latent is None:
        latent, left = latent_size(data, config.seed)
        note(
            f"--latent {latent}: as many principal components leave {left:.1%} of the variance of "
            f"the validation images ({train:,} images to learn from)"
        )
        config = config.replace(latent=latent)
    if config.linear is None:
        config = config.replace(linear=_is_nearly_linear(config, data, left))
        if config.linear:
            note("starting at the principal components, which are nearly enough for these images")
    if config.epochs is None:
        per_epoch = train // shape.images_per_step
        enough = default_epochs(per_epoch)
        most = augment.choose(config.augment, math.inf, lambda: augment.MOST)
        trial = filled(config.replace(compile=False, augmentation=most))
        available = TRAINING * 60 * config.minutes
        quick = available / (2 * enough * per_epoch)
        speed = ranks.size * _images_per_second(trial, data, ranks, build, quick)
        fits = max(1, int(available * speed / train))
        config = config.replace(epochs=min(enough, fits))
        why = f"all that fits into --minutes {config.minutes:g}" if fits < enough else "enough for this set"
        note(f"--epochs {config.epochs}: {why}, at {speed:,.0f} images/s")
    config = filled(config)
    if config.augmentation is None:
        config = config.replace(augmentation=_augmentation(config, data))
        if config.augment != "none":
            note(f"augmentation: {config.augmentation} (--augment {config.augment})")
    return config


def _is_nearly_linear(config: TrainConfig, data: Images, left: float | None) -> bool:
    """Whether a small set is little more than its principal components, as many as there are latents.

    A network learns nothing of such a set for a long time. Of others, and of large ones, it embeds images
    worse if it starts at their principal components. `left`: the share of the variance, if it is known.
    """
    assert config.latent is not None
    if len(data.split.train) > SMALL:
        return False
    if left is None:
        shares = variance_left(data, config.seed)
        left = float(shares[min(config.latent, len(shares)) - 1]) if len(shares) else 1.0
    return left <= LEFT


def _augmentation(config: TrainConfig, data: Images) -> Augmentation:
    assert config.epochs is not None
    return augment.choose(
        config.augment, config.epochs, lambda: augment.fitting(data.pixels, data.split.train, config.seed)
    )


def _images_per_second(
    config: TrainConfig, data: Images, ranks: Ranks, build: Callable[[TrainConfig], VAE], quick: float
) -> float:
    """The speed of one process, measured in a few steps of a network that is thrown away.

    A step of less than `quick` seconds need not be timed exactly.
    """
    device = ranks.device(config.device)
    now = state.start(build(config), config, device)
    forward = cast(now.network, config.precision, device)
    plan = schedule.plan(config, len(data.split.train), len(data.split.validation))
    rows = data.split.train[: config.images_per_step]
    pixels, alone = Pixels(data, device), Ranks()
    seconds: list[float] = []
    with threads(config):
        began = time.perf_counter()
        while len(seconds) < TRIAL or (
            time.perf_counter() < began + TRIAL_SECONDS and statistics.median(seconds[1:]) > quick
        ):
            start = time.perf_counter()
            images, eps = draw(config, pixels, rows, alone, "step", len(seconds))
            step.train_step(config, plan, now, forward, images, eps, alone)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return len(rows) / statistics.median(seconds[1:])
