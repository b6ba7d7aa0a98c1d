"""TensorBoard is a second place for the figures: the same, and never half of them."""

import sys

import pytest

from tests.training.runs import TINY, Watch
from training.config import ConfigError
from training.fit.tracking import _flat
from training.fit.trainer import fit

LINE = {"step": 3, "train": {"rate": 1.5, "grad_norm": None}, "validation": {"elbo": -2.0}, "lr": 0.1}


def test_every_number_of_a_line_is_a_scalar():
    scalars = [("step", 3), ("train/rate", 1.5), ("validation/elbo", -2.0), ("lr", 0.1)]
    assert _flat(LINE) == scalars


def test_a_run_writes_its_figures_and_once_only_after_a_resume(digits, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TINY.replace(epochs=2)
    result = fit(config, digits, tmp_path, progress=Watch(), tensorboard=True)
    fit(config, digits, tmp_path, progress=Watch(), tensorboard=True, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("validation/elbo")]
    expected = [(line["step"], pytest.approx(line["validation"]["elbo"])) for line in result.history]
    assert written == expected


def test_without_tensorboard_the_flag_says_what_to_install(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tensorboard\]'"):
        fit(TINY, digits, tmp_path, progress=Watch(), tensorboard=True)
    assert not list(tmp_path.glob("checkpoints/*"))
