"""What a run decides from its data, and says."""

import re
import time

import numpy as np
import pytest

from tests.training.runs import TINY, Watch
from training.config import TrainConfig
from training.data.images import from_arrays
from training.fit import automatic, progress, step
from training.fit.trainer import ALONE, fit
from training.model.networks import build

OPEN = TrainConfig(width=4, precision="float32", augment="none")


def resolved(config, data):
    notes = []
    return automatic.resolved(config, data, ALONE, build, notes.append), notes


def test_every_choice_is_said_with_its_reason(digits):
    config, notes = resolved(OPEN, digits)
    assert (config.latent, config.batch) == (32, 64)
    assert "--latent 32: as many principal components leave" in notes[0]
    assert notes[1] == "starting at the principal components, which are nearly enough for these images"
    assert re.match(rf"--epochs {config.epochs}: enough for this set, at [\d,]+ images/s", notes[2])
    assert automatic.resolved(config, digits, ALONE, build, notes.append) == config
    assert len(notes) == 3  # nothing is measured again


def test_a_slow_machine_trains_as_many_epochs_as_fit_into_the_minutes(digits, monkeypatch):
    real = step.train_step

    def slow(*args):
        time.sleep(0.1)
        return real(*args)

    monkeypatch.setattr(step, "train_step", slow)
    config, notes = resolved(OPEN.replace(minutes=0.5), digits)  # 300 steps at most, of 22 an epoch
    assert 5 <= config.epochs <= 13
    assert "all that fits into --minutes 0.5" in notes[2]
    assert resolved(OPEN.replace(minutes=0.5, epochs=77), digits)[0].epochs == 77


def test_only_small_sets_that_are_nearly_linear_start_at_their_principal_components(digits):
    noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    assert resolved(OPEN, digits)[0].linear
    few = OPEN.replace(latent=4)  # four components leave half of the variance
    assert not resolved(few, digits)[0].linear
    assert not resolved(OPEN, from_arrays("noise", noise))[0].linear
    many = from_arrays("many", np.tile(digits.pixels, (8, 1, 1, 1)))
    assert not resolved(OPEN, many)[0].linear


def test_the_trial_leaves_no_trace(digits, tmp_path):
    """The same weights come from the resolved config as from the one that was left open."""
    few = from_arrays("few", digits.pixels[:300])
    opened = fit(OPEN.replace(minutes=0.001), few, tmp_path / "open", progress=Watch())
    given = fit(opened.config, few, tmp_path / "given", progress=Watch())
    assert given.history[-1]["validation"] == opened.history[-1]["validation"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_for_people(seconds, text):
    assert progress.duration(seconds) == text


def test_plain_lines_say_how_long_it_will_take(digits, tmp_path, capsys):
    fit(TINY.replace(epochs=2), digits, tmp_path)
    first, last = capsys.readouterr().err.splitlines()
    assert re.search(r"images/s .* \d+ s left$", first)
    assert "left" not in last
