"""What a resumed run may change, and a run that starts from earlier weights."""

import json

import numpy as np
import pytest
import torch

from tests.training.runs import TINY, Watch
from training.config import ConfigError, TrainConfig
from training.data.images import from_arrays
from training.fit import checkpoint, schedule
from training.fit.trainer import fit
from vaeserve.bundle.files import publish


def test_more_epochs_extend_a_finished_run(digits, uninterrupted, tmp_path):
    fit(TINY, digits, tmp_path, progress=Watch())
    watch = Watch()
    longer = fit(TINY.replace(epochs=6), digits, tmp_path, resume=True, progress=watch)
    assert [line["step"] for line in longer.history] == [11, 22, 33, 44, 55, 66]
    assert longer.config.epochs == TrainConfig.from_json((tmp_path / "config.json").read_text()).epochs == 6
    (said,) = (note for note in watch.notes if "instead of 4" in note)
    after = schedule.learning_rate(longer.config, 44, 66)
    assert f"at step 44 changes from 0 to {after:.2g}" in said
    assert longer.history[4]["lr"] == schedule.learning_rate(longer.config, 54, 66)
    assert all(line["beta"] == 1 for line in longer.history[1:])  # the warm-up is not repeated
    assert longer.history[-1]["validation"]["elbo"] > uninterrupted.history[-1]["validation"]["elbo"]
    again = fit(TINY.replace(epochs=6), digits, tmp_path, resume=True, progress=Watch())
    assert again == longer


def test_a_run_that_ended_early_goes_on_when_it_is_extended(digits, tmp_path, monkeypatch):
    from training.fit import trainer

    real, elbos = trainer.evaluate, iter([3.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    monkeypatch.setattr(trainer, "evaluate", lambda *args: real(*args) | {"elbo": next(elbos)})
    config = TINY.replace(patience=2, epochs=8, kl_warmup=0.0)
    early = fit(config, digits, tmp_path, progress=Watch())
    assert early.history[-1]["step"] == 33
    longer = fit(config.replace(epochs=9), digits, tmp_path, resume=True, progress=Watch())
    assert longer.history[-1]["step"] == 55  # two more validations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, r"--lr 0\.002, which cannot become 0\.5.*--init"),
        ({"latent": 9, "width": 9}, "--latent 4, --width 4, which cannot become 9, 9"),
        ({"epochs": 3}, "has 4 epochs"),
    ],
)
def test_other_settings_of_a_run_are_not_silently_ignored(digits, uninterrupted, changes, message):
    before = (uninterrupted.run / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        fit(TrainConfig(**changes), digits, uninterrupted.run, resume=True, progress=Watch())
    assert (uninterrupted.run / "config.json").read_bytes() == before


def test_only_what_was_asked_for_is_compared(digits, uninterrupted):
    """`vae-train fit --run DIR --resume` repeats no setting."""
    again = fit(TrainConfig(), digits, uninterrupted.run, resume=True, progress=Watch())
    assert again.config == uninterrupted.config


@pytest.fixture(params=["checkpoint", "bundle"])
def source(request, run, exported, tmp_path):
    if request.param == "checkpoint":
        return run.checkpoint
    return publish(tmp_path / "models", "earlier", exported.draft)


def test_init_starts_from_earlier_weights_on_other_data(source, run, digits, tmp_path):
    other = from_arrays("turned", np.rot90(digits.pixels, 2, (1, 2)).copy(), digits.labels)
    config = TrainConfig(epochs=1, batch=128, init=str(source), precision="float32", augment="none")
    seen = []
    tuned = fit(config, other, tmp_path / "run", progress=Watch(lambda step: seen.append(step)))
    assert tuned.config.latent == 8  # of the earlier run
    cold = TrainConfig(epochs=1, batch=128, width=8, latent=8, precision="float32", augment="none")
    fresh = fit(cold, other, tmp_path / "cold", progress=Watch())
    assert tuned.history[-1]["validation"]["elbo"] > fresh.history[-1]["validation"]["elbo"] + 5
    # With a learning rate of almost nothing, the weights are those that were given.
    still = fit(config.replace(lr=1e-12), digits, tmp_path / "still", progress=Watch())
    expected = checkpoint.read_tensors(run.checkpoint)["ema"]
    found = checkpoint.read_tensors(still.checkpoint)["network"]
    for name, weights in found.items():
        if name != "variance":
            torch.testing.assert_close(weights, expected[name], atol=1e-6, rtol=1e-6)


def test_init_refuses_another_network_and_what_is_no_model(run, digits, tmp_path):
    with pytest.raises(ConfigError, match="has latent 8, not 5"):
        fit(TrainConfig(init=str(run.checkpoint), latent=5), digits, tmp_path / "a", progress=Watch())
    with pytest.raises(ConfigError, match="neither a bundle nor a checkpoint"):
        fit(TrainConfig(init=str(tmp_path)), digits, tmp_path / "b", progress=Watch())
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    state = checkpoint.read_state(run.checkpoint)
    (lacking / "state.json").write_text(json.dumps(state))
    tensors = checkpoint.read_tensors(run.checkpoint)
    del tensors["ema"]["encoder.head.weight"]
    torch.save(tensors, lacking / "state.pt")
    with pytest.raises(ConfigError, match=r"does not contain encoder\.head\.weight"):
        fit(TrainConfig(init=str(lacking)), digits, tmp_path / "c", progress=Watch())
