"""The training loop: writes checkpoints, and gives the same bits however often it is interrupted.

- All randomness comes from (seed, purpose, number): a fresh generator for each step's noise and each epoch's
  order. So a checkpoint needs no generator state, and a resumed run is bit-identical (on the CPU).
- The averaged (EMA) weights are evaluated, selected and exported.
- Validation is at β = 1, always with the same noise, and counts for `best` only after the KL warm-up.
- A step whose loss is not finite or whose gradient is far above the usual is skipped and counted.
- Under torchrun each process computes its share of every batch. Only the first one writes; the others wait
  for it in the next step, or at the end.

Of the packages for machine learning it needs torch and numpy only.
"""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import NO_AUGMENTATION, ConfigError, TrainConfig, resumed
from training.data.images import Images, Indices
from training.fit import (
    automatic,
    checkpoint,
    linear_start,
    schedule,
    state,
    step,
    stopping,
    warm_start,
)
from training.fit.batches import Pixels, draw, order
from training.fit.compiling import compiled
from training.fit.distributed import Ranks
from training.fit.precision import autocast, cast
from training.fit.progress import Progress, Silent, shown, stderr
from training.fit.schedule import Plan
from training.fit.state import State
from training.fit.threads import threads
from training.fit.tracking import TensorBoard
from training.fit.validation import evaluate, selection_score
from training.model import networks
from training.model.networks import VAE, Output

MOST_BAD_STEPS = 20  # non-finite in a row: no run has recovered after so many
ALONE = Ranks()


class TrainingError(Exception):
    """The run cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """The end of a run. `checkpoint` is the best one, or the newest before one counts as best."""

    run: Path
    checkpoint: Path
    config: TrainConfig
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    finished: bool  # False: stopped by a signal or after `stop_after`; `resume` continues


@dataclass(frozen=True)
class _Job:
    """What stays the same during a run."""

    config: TrainConfig
    plan: Plan
    data: Images
    run: Path
    ranks: Ranks
    pixels: Pixels
    progress: Progress
    board: TensorBoard | None

    @functools.cached_property
    def held_out(self) -> Indices:
        """The validation images that are evaluated: all, or always the same random choice."""
        rows = self.data.split.validation
        return np.sort(np.random.default_rng(self.config.seed).permutation(rows)[: self.plan.evaluated])


def fit(
    config: TrainConfig,
    data: Images,
    run: Path,
    *,
    resume: bool = False,
    stop_after: float | None = None,
    progress: Progress | None = None,
    tensorboard: bool = False,
    ranks: Ranks = ALONE,
    build: Callable[[TrainConfig], VAE] = networks.build,
) -> Result:
    """Train on `data.split.train`; write checkpoints and metrics.jsonl to `run`.

    `resume` continues from the newest checkpoint in `run`, with the config in that folder; more epochs in
    `config` extend the run. SIGINT, SIGTERM and the end of `stop_after` seconds finish the step, save and
    return with `finished=False`. Raises TrainingError, ConfigError and CheckpointError; the last good
    checkpoint is always kept.
    """
    note = progress.note if progress else stderr
    config = ranks.share(lambda: _start(config, data, run, resume, ranks, build, note))
    if config.images_per_step < ranks.size:
        raise ConfigError(f"--batch {config.batch} is less than one image for each of {ranks.size} processes")
    plan = schedule.plan(config, len(data.split.train), len(data.split.validation))
    with threads(config), contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping.stop_requests(stop_after))
        if not ranks.first:
            progress = Silent()
        elif progress is None:
            progress = stack.enter_context(shown(config.epochs or 0, plan.total))
        device = ranks.device(config.device)
        network, saved = build(config), ranks.share(lambda: _newest(run))
        if saved is None and (source := config.init):
            warm_start.load(network, ranks.share(lambda: warm_start.weights(Path(source))), source)
        elif saved is None:
            linear_start.start(network, data, config.seed)
        now = state.start(network, config, device)
        if saved:
            now.restore(*saved)
            progress.note(f"resuming from step {now.step} of {plan.total}")
        board = None
        if tensorboard and ranks.first:
            board = stack.enter_context(contextlib.closing(TensorBoard(run, now.step)))
        job = _Job(config, plan, data, run, ranks, Pixels(data, device), progress, board)
        return _train(job, now, stop)


def _train(job: _Job, now: State, stop: Callable[[], bool]) -> Result:
    config, plan, ranks, train = job.config, job.plan, job.ranks, job.data.split.train
    forward = _forward(job, now.network)
    history = checkpoint.trim_metrics(job.run, now.step) if ranks.first else []
    shuffled = (-1, train)
    saved_step, saved_at = now.step, time.monotonic()
    clock_step, clock = now.step, time.monotonic()

    while not plan.over(now.step, now.best) and not ranks.any(stop(), job.pixels.device):
        epoch, place = divmod(now.step, plan.per_epoch)
        if shuffled[0] != epoch:
            shuffled = (epoch, order(config.seed, epoch, train))
        rows = shuffled[1][place * config.images_per_step : (place + 1) * config.images_per_step]
        try:
            images, eps = draw(config, job.pixels, rows, ranks, "step", now.step)
        except OSError as error:
            raise TrainingError(f"the images can no longer be read ({error}); {_kept(job)}") from error
        done = step.train_step(config, plan, now, forward, images, eps, ranks)
        if not done.taken:
            job.progress.note(
                f"step {now.step - 1} skipped: gradient norm {done.norm:.3g}, loss {done.loss:.6g}"
            )
        if now.bad >= MOST_BAD_STEPS:
            raise TrainingError(
                f"the loss was not finite for {now.bad} steps, up to step {now.step - 1}; {_kept(job)}; "
                f"try a smaller --lr than {config.lr:g}"
            )
        speed = config.images_per_step * (now.step - clock_step) / max(time.monotonic() - clock, 1e-9)
        job.progress.step(now.step, epoch + 1, now.mean("distortion"), now.mean("rate"), speed)

        # While steps are not finite nothing is saved or selected, so the last checkpoint stays good.
        if plan.evaluates(now.step) and not now.bad:
            line = _evaluate(job, now, done, speed)
            history.append(line)
            _save(job, now)
            saved_step, saved_at = now.step, time.monotonic()
            clock_step, clock = now.step, time.monotonic()
        elif time.monotonic() - saved_at > config.checkpoint_seconds and not now.bad:
            _save(job, now)
            saved_step, saved_at = now.step, time.monotonic()

    if (now.step > saved_step or not now.step) and not now.bad:
        _save(job, now)
    over = plan.over(now.step, now.best)
    if not over:
        job.progress.note(
            f"stopped at step {now.step} of {plan.total} and saved; continue with --run {job.run} --resume"
        )
    elif now.step < plan.total and now.best:
        job.progress.note(f"stopped early: validation has not improved since step {now.best['step']}")
    chosen = ranks.share(lambda: checkpoint.best(job.run) or checkpoint.latest(job.run))
    if chosen is None:
        raise TrainingError(f"no step of this run was finite: try a smaller --lr than {config.lr:g}")
    return Result(job.run, chosen, config, history, finished=over)


def _evaluate(job: _Job, now: State, done: step.Outcome, speed: float) -> dict[str, Any]:
    """Validate the averaged weights, note the best and reset the sums. Returns the line of metrics.jsonl."""
    now.validation = evaluate(now.average, job.pixels, job.held_out, job.config, job.ranks)
    elbo = selection_score(now.validation)
    if not math.isfinite(elbo):
        raise TrainingError(
            f"the validation ELBO is {elbo} at step {now.step}; {_kept(job)}; "
            f"try a smaller --lr than {job.config.lr:g}"
        )
    if now.step > job.plan.warm and (now.best is None or elbo > now.best["elbo"]):
        now.best = {"step": now.step, "elbo": elbo}
    line = {
        "step": now.step,
        "epoch": round(now.step / job.plan.per_epoch, 2),
        "train": {
            "distortion": now.mean("distortion"),
            "rate": now.mean("rate"),
            "mse": now.mean("squares") / math.prod(job.data.shape),
            "skipped": now.sums["skipped"],
            "grad_norm": statistics.median(now.norms) if now.norms else None,
        },
        "validation": now.validation,
        "sigma": math.sqrt(float(now.average.variance)),
        **({} if now.average.scale is None else {"scale": float(now.average.scale)}),
        "lr": done.lr,
        "beta": done.beta,
        "images_per_second": round(speed, 1),
    }
    now.sums = dict.fromkeys(now.sums, 0)
    if job.ranks.first:
        checkpoint.append_metrics(job.run, line)
    if job.board:
        job.board.evaluated(line)
    job.progress.evaluated(line)
    return line


def _forward(job: _Job, network: VAE) -> Callable[[Tensor, Tensor], Output]:
    """The network compiled, parallel under torchrun, and in the config's precision."""
    config, device = job.config, job.pixels.device
    module: torch.nn.Module = network
    if config.compile:
        images, eps = draw(
            config, job.pixels, job.data.split.train[: config.images_per_step], job.ranks, "trial", 0
        )
        with autocast(config.precision, device):
            module = compiled(network, images, eps, job.progress.note)
    return cast(job.ranks.parallel(module, device), config.precision, device)


def _save(job: _Job, now: State) -> None:
    if not now.finite():
        raise TrainingError(
            f"the weights are not finite at step {now.step}; {_kept(job)}; "
            f"try a smaller --lr than {job.config.lr:g}"
        )
    if job.ranks.first:
        about = {
            "total_steps": job.plan.total,
            "epoch": now.step / job.plan.per_epoch,
            "config": job.config.to_dict(),
            "data": {"name": job.data.name, "digest": job.data.digest, "n": len(job.data.pixels)},
        }
        checkpoint.save(job.run, now.tensors(), now.record() | about)


def _kept(job: _Job) -> str:
    newest = checkpoint.latest(job.run)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"


def _newest(run: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    newest = checkpoint.latest(run)
    return (checkpoint.read_state(newest), checkpoint.read_tensors(newest)) if newest else None


def _start(
    config: TrainConfig,
    data: Images,
    run: Path,
    resume: bool,
    ranks: Ranks,
    build: Callable[[TrainConfig], VAE],
    note: Callable[[str], None],
) -> TrainConfig:
    """The config to train with: resolved and written to `run`, or the one that a resumed run has there."""
    path = run / "config.json"
    newest = checkpoint.latest(run)
    done = checkpoint.read_state(newest) if newest else None
    if resume and path.exists():
        saved = TrainConfig.from_json(path.read_text())
        config = resumed(saved, config, done["step"] if done else 0)
        if config.epochs != saved.epochs:
            note(_extension(saved, config, len(data.split.train)))
        if done:  # what a run of an earlier version did not have
            config = config.replace(
                augmentation=config.augmentation or NO_AUGMENTATION, linear=bool(config.linear)
            )
    elif newest:
        raise TrainingError(f"{run} already holds a run: continue it with --resume, or choose another --run")
    if done and done["data"]["digest"] != data.digest:
        raise TrainingError(f"the images are not those that {run} was trained on: start a new --run")
    if not done:
        config = warm_start.inherit(config)
    config = automatic.resolved(config, data, ranks, build, note)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(run)
    checkpoint.write(path, config.to_json())
    return config


def _extension(saved: TrainConfig, config: TrainConfig, images: int) -> str:
    """What a changed number of epochs does to the learning rate, in words."""
    per_epoch, step = images // config.images_per_step, config.extended_at
    before, after = (
        schedule.learning_rate(each, step, (each.epochs or 0) * per_epoch) for each in (saved, config)
    )
    return (
        f"{config.epochs} epochs instead of {saved.epochs}: the learning rate at step {step} "
        f"changes from {before:.2g} to {after:.2g}, and falls to 0 at step {(config.epochs or 0) * per_epoch}"
    )
