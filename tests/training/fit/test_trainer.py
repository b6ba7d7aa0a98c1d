"""The loop: it learns, it survives anything, and an interruption cannot be seen in its result."""

import json
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch

from tests.training.runs import TINY, Watch, assert_same_end
from training.config import TrainConfig, resolve
from training.data.images import from_arrays
from training.fit import batches, checkpoint, schedule, state, trainer
from training.fit.trainer import TrainingError, fit
from training.model import networks, objective


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        trainer.evaluate(network, pixels, digits.split.validation, uninterrupted.config.replace(batch=batch))
        for batch in (1000, 100)  # 221 images: the last of the three batches has 21
    )
    assert whole["n"] == pieces["n"] == 221
    assert whole["mse"] == pytest.approx(pieces["mse"], rel=1e-5)  # from the mean: no noise in it
    assert whole["rate"] == pytest.approx(pieces["rate"], rel=1e-5)


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

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left.*--resume"):
        checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": 2, "best": None})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_bad_step_is_skipped_and_counted(digits, tmp_path, monkeypatch):
    weights, watch = [], Watch()
    _poison(monkeypatch, {30}, lambda loss: loss * math.nan)
    real_average = state.average_into

    def count(average, network, *rest):
        weights.append(network.encoder.head.weight.detach().clone())
        real_average(average, network, *rest)

    monkeypatch.setattr(state, "average_into", count)
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
    with pytest.raises(TrainingError, match=r"not finite for 20 steps, up to step 34.*step-00000011.*--lr"):
        fit(TINY, digits, tmp_path, progress=Watch())
    network, _ = checkpoint.load(checkpoint.latest(tmp_path))
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def _poison(monkeypatch, steps, change):
    real, count = objective.loss, iter(range(10**6))
    monkeypatch.setattr(
        objective, "loss", lambda *args: change(real(*args)) if next(count) in steps else real(*args)
    )


def test_best_counts_only_after_the_kl_warm_up(digits, tmp_path):
    config = TINY.replace(kl_warmup=0.6, epochs=2)
    result = fit(config, digits, tmp_path, progress=Watch())
    assert checkpoint.read_state(result.checkpoint)["best"]["step"] == 22  # not 11, within the first 13
    none_yet = fit(config.replace(kl_warmup=1.0), digits, tmp_path / "none", progress=Watch())
    assert checkpoint.best(none_yet.run) is None
    assert none_yet.checkpoint == checkpoint.latest(none_yet.run)


def test_validation_that_no_longer_improves_ends_the_run(digits, uninterrupted, tmp_path, monkeypatch):
    """Early, but with the learning rates of the whole run; and resuming knows that it is over."""
    real, elbos = trainer.evaluate, iter([1.0, 3.0, 2.0, 2.5, 9.0])
    monkeypatch.setattr(trainer, "evaluate", lambda *args: real(*args) | {"elbo": next(elbos)})
    config = TINY.replace(patience=2, epochs=8, kl_warmup=0.2)  # warm-up: 17 of 88 steps
    watch = Watch()
    result = fit(config, digits, tmp_path, progress=watch)
    assert result.finished
    assert [line["step"] for line in result.history] == [11, 22, 33, 44]
    assert checkpoint.read_state(result.checkpoint)["step"] == 22
    assert watch.notes == ["stopped early: validation has not improved since step 22"]
    assert result.history[-1]["lr"] == schedule.learning_rate(config, 43, 88)
    assert fit(config, digits, tmp_path, resume=True, progress=Watch()) == result
    assert next(elbos) == 9  # no evaluation since


@pytest.mark.parametrize("lr", [1e3, 1e20])
def test_a_learning_rate_that_explodes_ends_with_a_sentence(digits, tmp_path, lr):
    """Whether by losses, weights or the validation that are not finite: nothing of it is ever saved."""
    config = TINY.replace(lr=lr, lr_warmup=0.5, epochs=20, skip_factor=1e30, checkpoint_seconds=0)
    with pytest.raises(
        TrainingError, match=rf"finite.*checkpoint.*smaller --lr than {lr:g}".replace("+", ".")
    ):
        fit(config, digits, tmp_path, progress=Watch())
    if newest := checkpoint.latest(tmp_path):
        network, _ = checkpoint.load(newest)
        assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_a_validation_that_is_not_a_number_is_never_the_best(digits, tmp_path, monkeypatch):
    real = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *args: real(*args) | {"elbo": math.nan})
    with pytest.raises(TrainingError, match="validation ELBO is nan at step 11; there is no checkpoint yet"):
        fit(TINY, digits, tmp_path, progress=Watch())


# The peers' defects (design/training.md, section 8), as far as the loop is concerned.


def test_every_epoch_has_its_own_order_of_the_same_rows(digits):
    """pythae never calls set_epoch: under DDP each of its epochs has the same order."""
    rows = digits.split.train
    orders = [batches.order(0, epoch, rows) for epoch in range(3)]
    assert all(sorted(order) == list(rows) for order in orders)
    assert len({tuple(order) for order in [*orders, batches.order(1, 0, rows)]}) == 4
    assert list(batches.order(0, 1, rows)) == list(orders[1])


def test_a_checkpoint_holds_weights_and_optimiser_of_one_step(digits, tmp_path):
    """pythae saves the best weights beside the optimiser of now: here also in the checkpoint of the best."""
    fit(TINY.replace(checkpoint_seconds=0, epochs=2), digits, tmp_path, progress=Watch())
    for path in (tmp_path / "checkpoints").iterdir():
        tensors, record = checkpoint.read_tensors(path), checkpoint.read_state(path)
        steps = {int(value["step"]) for value in tensors["optimizer"]["state"].values()}
        assert steps == {record["step"]}
        assert tensors["network"].keys() == tensors["ema"].keys()


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_validation_is_the_elbo_whatever_beta_is_trained_with(digits, uninterrupted, beta):
    """PyTorch-VAE validates with another weight of the rate than it trains with."""
    network, _ = checkpoint.load(uninterrupted.checkpoint)
    pixels = trainer.Pixels(digits, torch.device("cpu"))
    other = uninterrupted.config.replace(beta=beta)
    figures = trainer.evaluate(network, pixels, digits.split.validation, other)
    assert figures == trainer.evaluate(network, pixels, digits.split.validation, uninterrupted.config)
    assert figures["elbo"] == -figures["distortion"] - figures["rate"]
    assert figures["rate"] > 0  # logged with its own sign, which PyTorch-VAE turns round


def test_beta_weighs_the_rate_in_training(digits, uninterrupted, tmp_path):
    heavy = fit(TINY.replace(beta=20.0), digits, tmp_path, progress=Watch())
    assert heavy.history[-1]["beta"] == 20
    assert heavy.history[-1]["validation"]["rate"] < uninterrupted.history[-1]["validation"]["rate"] / 2


def test_only_train_and_validation_rows_are_ever_read(digits, tmp_path, monkeypatch):
    """PyTorch-VAE validates, and so selects, on the test split."""
    seen, real = set(), trainer.Pixels.batch

    def batch(self, rows):
        seen.update(rows.tolist())
        return real(self, rows)

    monkeypatch.setattr(trainer.Pixels, "batch", batch)
    fit(TINY, digits, tmp_path, progress=Watch())
    assert seen == {*digits.split.train.tolist(), *digits.split.validation.tolist()}


def test_nothing_that_the_caller_holds_is_changed(digits, tmp_path):
    """PyTorch-VAE reverses the caller's list of layers."""
    pixels, train = digits.pixels.copy(), digits.split.train.copy()
    config = TINY.to_dict()
    fit(TINY.replace(epochs=1), digits, tmp_path, progress=Watch())
    assert TINY.to_dict() == config
    assert (digits.pixels == pixels).all()
    assert (digits.split.train == train).all()


def test_black_and_white_images_are_trained_as_bernoulli(digits, tmp_path):
    images = from_arrays("black-white", (digits.pixels > 127).astype("uint8") * 255)
    result = fit(TINY.replace(epochs=2), images, tmp_path, progress=Watch())
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
    config = TINY.replace(epochs=1)
    thread = threading.Thread(target=lambda: results.append(fit(config, digits, tmp_path, progress=Watch())))
    thread.start()
    thread.join()
    assert results[0].finished


def test_without_a_terminal_progress_is_plain_lines(digits, tmp_path, capsys):
    fit(TINY.replace(epochs=2), digits, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "validation ELBO" in lines[0]


def test_weights_decay_and_biases_do_not():
    network = networks.build(resolve(TINY, name="a", train=100, image=(8, 8, 1), binary=False))
    decayed, others = state._optimizer(network, TINY).param_groups
    assert decayed["weight_decay"] == TINY.weight_decay
    assert others["weight_decay"] == 0
    assert {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("activation", ["pre", "post"])
def test_larger_images_are_distinguished(activation, digits, tmp_path):
    """Without norms the networks for them decode everything to the mean image and never learn."""
    pixels = digits.pixels.repeat(4, axis=1).repeat(4, axis=2)
    images = from_arrays("large", pixels, digits.labels)
    config = TrainConfig(epochs=10, width=8, latent=16, activation=activation, precision="float32")
    result = fit(config, images, tmp_path / "run", progress=Watch())
    mean_image = np.square(pixels / 255 - pixels.mean(axis=0) / 255).mean()
    assert result.history[-1]["validation"]["mse"] < 0.75 * mean_image
