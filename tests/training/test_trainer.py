"""The loop: it learns, it survives anything, and an interruption cannot be seen in its result."""

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from training import checkpoint, networks, schedule, trainer
from training.config import ConfigError, TrainConfig, resolve
from training.data import from_arrays
from training.trainer import TrainingError, fit

# 44 steps of a tiny network; checkpoints only where a test asks for them.
TINY = TrainConfig(epochs=4, width=4, latent=4, checkpoint_seconds=1e9)


class Watch:
    """A progress that calls `at(step)` after each step, and remembers what it was told."""

    def __init__(self, at=lambda step: None):
        self.at, self.notes, self.lines = at, [], []

    def step(self, step, epoch, distortion, rate, images_per_second):
        self.at(step)

    def evaluated(self, line):
        self.lines.append(line)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _frequent_evaluation(monkeypatch):
    monkeypatch.setattr(trainer, "EVALUATE_EVERY", 11)


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "EVALUATE_EVERY", 11)
        return fit(TINY, digits, tmp_path_factory.mktemp("uninterrupted"), progress=Watch())


def assert_same_end(run, other):
    """Bit for bit: weights, averages, optimiser, σ², best, and every figure but the speed."""
    tensors, others = (checkpoint.read_tensors(checkpoint.latest(of)) for of in (run, other))
    assert_equal(tensors, others)
    state, other_state = (checkpoint.read_state(checkpoint.latest(of)) for of in (run, other))
    assert state == other_state
    lines, other_lines = (
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in (of / "metrics.jsonl").read_text().splitlines()
        ]
        for of in (run, other)
    )
    assert lines == other_lines


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert a.equal(b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_it_learns_and_leaves_what_it_promises(digits, uninterrupted):
    elbos = [line["validation"]["elbo"] for line in uninterrupted.history]
    assert [line["step"] for line in uninterrupted.history] == [11, 22, 33, 44]
    assert elbos == sorted(elbos)
    assert uninterrupted.finished
    assert uninterrupted.checkpoint == checkpoint.best(uninterrupted.run)
    state = checkpoint.read_state(uninterrupted.checkpoint)
    assert state["best"] == {"step": 44, "elbo": elbos[-1]}
    assert state["data"]["digest"] == digits.digest
    config = TrainConfig.from_json((uninterrupted.run / "config.json").read_text())
    assert config == uninterrupted.config == TrainConfig.from_dict(state["config"])
    assert (config.name, config.likelihood, config.image_size) == ("digits", "gaussian", (8, 8))


def test_load_gives_the_averaged_network_that_was_evaluated(digits, uninterrupted):
    network, state = checkpoint.load(uninterrupted.checkpoint)
    pixels = trainer.Pixels(digits, torch.device("cpu"))
    again = trainer.evaluate(network, pixels, digits.split.validation, uninterrupted.config)
    assert again == pytest.approx(state["validation"], rel=1e-5)
    assert math.sqrt(network.variance) == pytest.approx(uninterrupted.history[-1]["sigma"])


def test_validation_is_a_mean_over_images_not_over_batches(digits, uninterrupted):
    network, _ = checkpoint.load(uninterrupted.checkpoint)
    pixels = trainer.Pixels(digits, torch.device("cpu"))
    whole, pieces = (
        trainer.evaluate(
            network, pixels, digits.split.validation, dataclasses.replace(uninterrupted.config, batch=batch)
        )
        for batch in (1000, 100)  # 221 images: the last of the three batches has 21
    )
    assert whole["n"] == pieces["n"] == 221
    assert whole["mse"] == pytest.approx(pieces["mse"], rel=1e-5)  # from the mean: no noise in it
    assert whole["rate"] == pytest.approx(pieces["rate"], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resuming_cannot_be_seen(digits, uninterrupted, tmp_path, number):
    at = random.randrange(1, 44)
    stopped = fit(
        TINY,
        digits,
        tmp_path,
        progress=Watch(lambda step: os.kill(os.getpid(), number) if step == at else None),
    )
    assert not stopped.finished
    assert checkpoint.read_state(checkpoint.latest(tmp_path))["step"] == at
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    ignored = TrainConfig(lr=1, epochs=1)  # the config that lies in the run is what counts
    resumed = fit(ignored, digits, tmp_path, resume=True, progress=Watch())
    assert resumed.finished
    assert resumed.history[-1]["step"] == 44
    assert_same_end(tmp_path, uninterrupted.run)


CHILD = """
    import sys
    from pathlib import Path
    import torch
    from training import data, trainer
    from training.config import TrainConfig

    trainer.EVALUATE_EVERY = 11
    config = TrainConfig(epochs=4, width=4, latent=4, checkpoint_seconds=0)  # a checkpoint at every step
    trainer.fit(config, data.load("digits"), Path(sys.argv[1]), resume=True)
"""


def test_after_kill_9_resuming_cannot_be_seen(digits, uninterrupted, tmp_path):
    """Killed at a random moment, often in the middle of writing a checkpoint."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)]) as child:
        at = random.randrange(1, 35)
        deadline = time.monotonic() + 60
        while not (newest := checkpoint.latest(tmp_path)) or newest.name < f"step-{at:08d}":
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.kill()
    fit(TINY, digits, tmp_path, resume=True, progress=Watch())
    config = dataclasses.replace(uninterrupted.config, checkpoint_seconds=0)
    assert TrainConfig.from_json((tmp_path / "config.json").read_text()) == config
    assert not list((tmp_path / "checkpoints").glob(".*"))
    tensors, others = (checkpoint.read_tensors(checkpoint.latest(of)) for of in (tmp_path, uninterrupted.run))
    assert_equal(tensors, others)


def test_resuming_a_finished_run_changes_nothing(digits, uninterrupted):
    before = (uninterrupted.run / "metrics.jsonl").read_bytes()
    again = fit(TINY, digits, uninterrupted.run, resume=True, progress=Watch())
    assert again == uninterrupted
    assert (uninterrupted.run / "metrics.jsonl").read_bytes() == before


def test_metrics_of_steps_that_a_crash_undid_are_dropped(digits, uninterrupted, tmp_path):
    fit(
        TINY,
        digits,
        tmp_path,
        progress=Watch(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 15 else None),
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 22}) + "\n" + '{"step": 3')
    fit(TINY, digits, tmp_path, resume=True, progress=Watch())
    assert_same_end(tmp_path, uninterrupted.run)


def test_the_last_two_and_the_best_checkpoint_stay(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": step, "best": {"step": 2}})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000005", "step-00000006"]
    assert checkpoint.best(tmp_path).name == "step-00000002"


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": 1, "best": None})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left.*--resume"):
        checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": 2, "best": None})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_bad_step_is_skipped_and_counted(digits, tmp_path, monkeypatch):
    weights, watch = [], Watch()
    _poison(monkeypatch, {30}, lambda loss: loss * math.nan)
    real_average = trainer.average_into

    def count(average, network, *rest):
        weights.append(network.encoder.head.weight.detach().clone())
        real_average(average, network, *rest)

    monkeypatch.setattr(trainer, "average_into", count)
    result = fit(TINY, digits, tmp_path, progress=watch)
    assert len(weights) == 43  # of 44
    assert all(weight.isfinite().all() for weight in weights)
    assert [line["train"]["skipped"] for line in result.history] == [0, 0, 1, 0]
    assert any(note.startswith("step 30 skipped") for note in watch.notes)
    assert all(math.isfinite(line["train"]["distortion"]) for line in result.history)


def test_a_gradient_far_above_the_usual_is_skipped(digits, tmp_path, monkeypatch):
    _poison(monkeypatch, {30}, lambda loss: loss * 1e6)
    result = fit(TINY, digits, tmp_path, progress=Watch())
    assert [line["train"]["skipped"] for line in result.history] == [0, 0, 1, 0]


def test_a_run_that_is_lost_ends_with_a_sentence_and_its_last_good_checkpoint(digits, tmp_path, monkeypatch):
    _poison(monkeypatch, range(15, 1000), lambda loss: loss * math.nan)
    with pytest.raises(TrainingError, match=r"not finite for 20 steps, up to step 34.*step-00000033.*--lr"):
        fit(TINY, digits, tmp_path, progress=Watch())
    network, _ = checkpoint.load(checkpoint.latest(tmp_path))
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def _poison(monkeypatch, steps, change):
    real, count = trainer.objective.loss, iter(range(10**6))
    monkeypatch.setattr(
        trainer.objective, "loss", lambda *args: change(real(*args)) if next(count) in steps else real(*args)
    )


def test_best_counts_only_after_the_kl_warm_up(digits, tmp_path):
    config = dataclasses.replace(TINY, kl_warmup=0.6, epochs=2)
    result = fit(config, digits, tmp_path, progress=Watch())
    assert checkpoint.read_state(result.checkpoint)["best"]["step"] == 22  # not 11, within the first 13
    none_yet = fit(dataclasses.replace(config, kl_warmup=1.0), digits, tmp_path / "none", progress=Watch())
    assert checkpoint.best(none_yet.run) is None
    assert none_yet.checkpoint == checkpoint.latest(none_yet.run)


def test_black_and_white_images_are_trained_as_bernoulli(digits, tmp_path):
    images = from_arrays("black-white", (digits.pixels > 127).astype("uint8") * 255)
    result = fit(dataclasses.replace(TINY, epochs=2), images, tmp_path, progress=Watch())
    assert result.config.likelihood == "bernoulli"
    assert result.history[-1]["validation"]["elbo"] > -64 * math.log(2)  # better than a coin per pixel


def test_a_run_is_neither_overwritten_nor_resumed_with_other_images(digits, uninterrupted):
    with pytest.raises(TrainingError, match="--resume"):
        fit(TINY, digits, uninterrupted.run)
    other = from_arrays("other", 255 - digits.pixels)
    with pytest.raises(TrainingError, match="not those"):
        fit(TINY, other, uninterrupted.run, resume=True)


def test_it_runs_in_a_thread_where_signals_cannot_be_caught(digits, tmp_path):
    results = []
    config = dataclasses.replace(TINY, epochs=1)
    thread = threading.Thread(target=lambda: results.append(fit(config, digits, tmp_path, progress=Watch())))
    thread.start()
    thread.join()
    assert results[0].finished


def test_without_a_terminal_progress_is_plain_lines(digits, tmp_path, capsys):
    fit(dataclasses.replace(TINY, epochs=2), digits, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "validation ELBO" in lines[0]


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    config = TrainConfig(lr=0.1, lr_warmup=0.1)
    rates = [schedule.learning_rate(config, step, 100) for step in range(100)]
    assert 0 < rates[0] < rates[5] < rates[10] == max(rates) == 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_the_kl_weight_rises_to_one_and_stays():
    config = TrainConfig(kl_warmup=0.1)
    assert [schedule.kl_weight(config, step, 100) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert schedule.kl_weight(dataclasses.replace(config, kl_warmup=0), 1, 100) == 1


def test_weights_decay_and_biases_do_not():
    network = networks.build(resolve(TINY, name="a", train=100, image=(8, 8, 1), binary=False))
    decayed, others = trainer._optimizer(network, TINY).param_groups
    assert decayed["weight_decay"] == TINY.weight_decay
    assert others["weight_decay"] == 0
    assert {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_a_config_round_trips_json_and_refuses_nonsense():
    config = TrainConfig(image_size=(37, 53), latent=7, betas=(0.5, 0.6))
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="newer"):
        TrainConfig.from_dict({"flux": 1})
    for wrong in ({"epochs": 0}, {"lr": math.nan}, {"channels": 2}, {"beta": -1}, {"image_size": (2, 8)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TrainConfig(**wrong)
    with pytest.raises(ConfigError, match="8x8"):
        resolve(config, name="a", train=100, image=(8, 8, 1), binary=False)
    with pytest.raises(ConfigError, match="warp"):
        trainer.choose_device("warp")
