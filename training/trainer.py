"""The training loop: data in, checkpoints out, the same bits however often it was interrupted.

- All randomness comes from (seed, purpose, number): a fresh generator for each step's noise and each epoch's
  order. So a checkpoint needs no generator state, and a killed run goes on bit-identically (on the CPU).
- The averaged (EMA) weights are what is evaluated, selected and exported.
- Validation is at β = 1, always with the same noise, and counts for `best` only after the KL warm-up.
- A step whose loss is not finite or whose gradient is far above the usual is skipped and counted.

Needs torch and numpy only, so that it also runs on a rented machine.
"""

import contextlib
import copy
import math
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import checkpoint, objective
from training.batches import Pixels, generator, order
from training.config import ConfigError, Likelihood, TrainConfig, resolve
from training.data import Images, Indices
from training.networks import VAE, build
from training.progress import Progress, shown
from training.schedule import NORMS, clip_bound, is_spike, kl_weight, learning_rate

EVALUATE_EVERY = 200  # steps at least: tiny sets would otherwise spend their time on validation and syncing
FEW_PIXELS = 2**15  # in a batch: below that a second thread costs more in waiting than it brings
MOST_BAD_STEPS = 20  # non-finite in a row: from there no run has come back


class TrainingError(Exception):
    """The run cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """What a run has come to. `checkpoint` is the best one, or the newest where none counts as best yet."""

    run: Path
    checkpoint: Path
    config: TrainConfig
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    finished: bool  # False: stopped by a signal, to go on with resume


def fit(
    config: TrainConfig, data: Images, run: Path, *, resume: bool = False, progress: Progress | None = None
) -> Result:
    """Train on `data.split.train` and leave checkpoints and metrics.jsonl in `run`.

    `resume` goes on from the newest checkpoint in `run`, with the config that lies there. SIGINT and SIGTERM
    finish the step, save and return with `finished=False`. Raises TrainingError, ConfigError and
    CheckpointError; the last good checkpoint always stays.
    """
    config = _start(config, data, run, resume)
    with _threads(config), contextlib.ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(shown(config.epochs or 0, _total_steps(config, data)))
        return _train(config, data, run, progress)


def _train(config: TrainConfig, data: Images, run: Path, progress: Progress) -> Result:
    device = choose_device(config.device)
    network = build(config).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5× as fast on CPU at 28×28
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = _optimizer(network, config)
    if config.compile:
        network.compile()
    pixels = Pixels(data, device)

    train, per_epoch = data.split.train, len(data.split.train) // config.batch
    total = _total_steps(config, data)
    evaluate_every = per_epoch * math.ceil(EVALUATE_EVERY / per_epoch)  # whole epochs
    step, shuffled = 0, (-1, train)
    norms: list[float] = []
    sums: dict[str, float] = {"distortion": 0, "rate": 0, "squares": 0, "images": 0, "skipped": 0}
    best: dict[str, Any] | None = None
    validation: dict[str, float] | None = None

    if newest := checkpoint.latest(run):
        state, tensors = checkpoint.read_state(newest), checkpoint.read_tensors(newest, device)
        network.load_state_dict(tensors["network"])
        average.load_state_dict(tensors["ema"])
        optimizer.load_state_dict(tensors["optimizer"])
        step, norms, sums = state["step"], state["norms"], state["sums"]
        validation, best = state["validation"], state["best"]
        progress.note(f"going on from step {step} of {total}")
    history = checkpoint.trim_metrics(run, step)
    saved_at, saved_step = time.monotonic(), step

    def save() -> None:
        nonlocal saved_at, saved_step
        checkpoint.save(
            run,
            {
                "network": network.state_dict(),
                "ema": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            {
                "step": step,
                "total_steps": total,
                "epoch": step / per_epoch,
                "config": config.to_dict(),
                "data": {"name": data.name, "digest": data.digest, "n": len(data.pixels)},
                "validation": validation,
                "best": best,
                "norms": norms,
                "sums": sums,
            },
        )
        saved_at, saved_step = time.monotonic(), step

    clock, clock_step, bad_steps = time.monotonic(), step, 0
    with _until_signal() as stop:
        while step < total and not stop.is_set():
            epoch, place = divmod(step, per_epoch)
            if shuffled[0] != epoch:
                shuffled = (epoch, order(config.seed, epoch, train))
            rows = shuffled[1][place * config.batch : (place + 1) * config.batch]
            noise = generator(device, config.seed, "step", step)
            images = pixels.batch(rows)
            if config.likelihood == "bernoulli":
                images = objective.binarise(images, noise)
            eps = torch.randn(len(rows), network.shape.latent, generator=noise, device=device)

            lr, beta = learning_rate(config, step, total), config.beta * kl_weight(config, step, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits, posterior = network(images, eps)
            terms, squares = objective.terms(_kind(config), logits, images, posterior)
            loss = objective.loss(terms, beta)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm_tensor = torch.nn.utils.clip_grad_norm_(network.parameters(), clip_bound(config, norms))
            value, norm, distortion, rate, squared = torch.stack(  # one wait for the device, not five
                [loss, norm_tensor, terms.distortion.sum(), terms.rate.sum(), squares]
            ).tolist()
            finite = math.isfinite(norm) and math.isfinite(value)
            if finite and not is_spike(config, norm, norms):
                optimizer.step()
                decay = min(config.ema, (1 + step) / (10 + step))  # the first weights are soon forgotten
                average_into(average, network, objective.optimal_variance(squares, images.numel()), decay)
                for name, amount in zip(sums, (distortion, rate, squared, len(rows), 0), strict=True):
                    sums[name] += amount
            else:
                sums["skipped"] += 1
                progress.note(f"step {step} skipped: gradient norm {norm:.3g}, loss {value:.6g}")
            # A finite spike counts for the median too: where large gradients have come to stay, it follows.
            norms = [*norms, norm][-NORMS:] if finite else norms
            bad_steps = 0 if finite else bad_steps + 1
            if bad_steps >= MOST_BAD_STEPS:
                raise TrainingError(
                    f"the loss was not finite for {bad_steps} steps, up to step {step}. The last good "
                    f"checkpoint is {checkpoint.latest(run)}; try a smaller --lr than {config.lr:g}."
                )
            step += 1
            speed = config.batch * (step - clock_step) / max(time.monotonic() - clock, 1e-9)
            count = max(sums["images"], 1)
            progress.step(step, epoch + 1, sums["distortion"] / count, sums["rate"] / count, speed)

            if step == total or step % evaluate_every == 0:
                validation = evaluate(average, pixels, data.split.validation, config)
                line = {
                    "step": step,
                    "epoch": step // per_epoch,
                    "train": {
                        "distortion": sums["distortion"] / count,
                        "rate": sums["rate"] / count,
                        "mse": sums["squares"] / count / images[0].numel(),
                        "skipped": sums["skipped"],
                        "grad_norm": statistics.median(norms) if norms else None,
                    },
                    "validation": validation,
                    "sigma": math.sqrt(float(average.variance)),
                    "lr": lr,
                    "beta": beta,
                    "images_per_second": round(speed, 1),
                }
                if step > config.kl_warmup * total and (best is None or validation["elbo"] > best["elbo"]):
                    best = {"step": step, "elbo": validation["elbo"]}
                sums = dict.fromkeys(sums, 0)
                checkpoint.append_metrics(run, line)
                history.append(line)
                progress.evaluated(line)
                save()
                clock, clock_step = time.monotonic(), step
            elif time.monotonic() - saved_at > config.checkpoint_seconds:
                save()
    if step > saved_step or checkpoint.latest(run) is None:
        save()
    if step < total:
        progress.note(f"stopped at step {step} of {total}, saved; go on with --run {run} --resume")
    chosen = checkpoint.best(run) or checkpoint.latest(run)
    assert chosen is not None  # saved just above, if not before
    return Result(run, chosen, config, history, finished=step >= total)


@torch.no_grad()
def evaluate(network: VAE, pixels: Pixels, rows: Indices, config: TrainConfig) -> dict[str, float]:
    """Means over images: ELBO (β = 1), distortion and rate in nats; MSE of reconstructions from the mean.

    With the same noise every time, so that two evaluations differ by their weights alone.
    """
    totals = torch.zeros(3, dtype=torch.float64)  # sums over images: the last batch is smaller
    noise = generator(pixels.device, config.seed, "validation", 0)
    for start in range(0, len(rows), config.batch):
        images = pixels.batch(rows[start : start + config.batch])
        if config.likelihood == "bernoulli":
            images = objective.binarise(images, noise)
        eps = torch.randn(len(images), network.shape.latent, generator=noise, device=pixels.device)
        logits, posterior = network(images, eps)
        terms, _ = objective.terms(_kind(config), logits, images, posterior, network.variance)
        errors = (images - torch.sigmoid(network.decoder(posterior.mean))).square().flatten(1).mean(1)
        totals += torch.stack([terms.distortion.sum(), terms.rate.sum(), errors.sum()]).cpu().double()
    distortion, rate, mse = (totals / len(rows)).tolist()
    return {"elbo": -distortion - rate, "distortion": distortion, "rate": rate, "mse": mse, "n": len(rows)}


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if torch sees one, else the CPU. Raises ConfigError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises without CUDA
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    return torch.device(name)


@torch.no_grad()
def average_into(average: VAE, network: VAE, variance: Tensor, decay: float) -> None:
    """average ← decay·average + (1 − decay)·network, and the same for σ², which is a buffer of `average`."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    average.variance.lerp_(variance, 1 - decay)


def _optimizer(network: VAE, config: TrainConfig) -> torch.optim.AdamW:
    """Weights of convolutions and linear layers decay, biases do not."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _start(config: TrainConfig, data: Images, run: Path, resume: bool) -> TrainConfig:
    """The config to train with: resolved and written down, or the one that lies in the run to resume."""
    path = run / "config.json"
    newest = checkpoint.latest(run)
    if resume and path.exists():
        config = TrainConfig.from_json(path.read_text())
    elif newest:
        raise TrainingError(f"{run} already holds a run: go on with --resume, or choose another --run")
    if newest and checkpoint.read_state(newest)["data"]["digest"] != data.digest:
        raise TrainingError(f"the images are not those that {run} was trained on: start a new --run")
    config = resolve(
        config, name=data.name, train=len(data.split.train), image=data.shape, binary=data.binary
    )
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(run)
    checkpoint.write(path, config.to_json())
    return config


def _total_steps(config: TrainConfig, data: Images) -> int:
    assert config.epochs is not None  # resolved
    return config.epochs * (len(data.split.train) // config.batch)


def _kind(config: TrainConfig) -> Likelihood:
    assert config.likelihood != "auto"  # resolved
    return config.likelihood


@contextlib.contextmanager
def _threads(config: TrainConfig) -> Iterator[None]:
    """One thread for small batches of small images: on a busy machine two took 29× the time, waiting."""
    before = torch.get_num_threads()
    if config.batch * math.prod(config.image_size or ()) < FEW_PIXELS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second one acts as if nobody listened."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
