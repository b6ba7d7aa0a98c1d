"""The settings of a run: checked, round-tripped through JSON, set by flags, and completed from the data."""

import math

import pytest
import typer
from pydantic import ValidationError

from training.config import ConfigError, TrainConfig, flags, resolve
from training.fit.distributed import Ranks
from training.flags import with_settings


def test_a_config_round_trips_json_and_refuses_nonsense():
    config = TrainConfig(image_size=(37, 53), latent=7, betas=(0.5, 0.6))
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="newer"):
        TrainConfig.from_dict({"flux": 1})
    for wrong in ({"epochs": 0}, {"lr": math.nan}, {"channels": 2}, {"beta": -1}, {"image_size": (2, 8)}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')} cannot be "):
            TrainConfig(**wrong)
    with pytest.raises(ConfigError, match=r"`ema` cannot be 1: Input should be less than 1"):
        TrainConfig(ema=1)


def test_a_config_is_frozen_and_a_changed_copy_is_checked():
    config = TrainConfig(epochs=3)
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 4
    assert config.replace(epochs=4) == TrainConfig(epochs=4)
    with pytest.raises(ConfigError, match="--epochs cannot be 0"):
        config.replace(epochs=0)
    with pytest.raises(ConfigError, match="leave out --free-bits"):
        config.replace(prior="flow", free_bits=0.1)


def test_the_command_line_sets_every_flag_of_the_config(monkeypatch):
    """Each flag with a value that is not its default reaches the field of its name."""
    given = {
        "data": "mnist",
        "name": "some",
        "epochs": 3,
        "minutes": 1.5,
        "batch": 7,
        "lr": 0.5,
        "seed": 9,
        "latent": 5,
        "width": 6,
        "activation": "post",
        "image_size": (12, 8),
        "channels": 3,
        "fit": "cover",
        "augment": "light",
        "init": "runs/other/checkpoints/step-1",
        "memory_limit": 10,
        "likelihood": "logistic",
        "prior": "mixture",
        "iwae": 2,
        "free_bits": 0.5,
        "beta": 2.0,
        "device": "cpu",
        "compile": False,
        "precision": "float32",
        "patience": 3,
    }
    assert given.keys() == flags().keys()
    seen = []

    def command(settings: dict, steps: int = 1) -> None:
        seen.append(settings)

    app = typer.Typer()
    app.command()(with_settings(command))
    arguments = []
    for name, value in given.items():
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        arguments += [f"--no-{name}"] if value is False else [f"--{name.replace('_', '-')}", text]
    app(arguments, standalone_mode=False)
    assert TrainConfig(**seen[0] | {"iwae": 1, "free_bits": 0}) == TrainConfig(
        **given | {"iwae": 1, "free_bits": 0}
    )
    app([], standalone_mode=False)
    assert TrainConfig(**seen[1]) == TrainConfig()


def test_a_config_must_fit_the_data():
    config = TrainConfig(image_size=(37, 53))
    with pytest.raises(ConfigError, match="8x8"):
        resolve(config, name="a", train=100, image=(8, 8, 1), binary=False)
    with pytest.raises(ConfigError, match="warp"):
        Ranks().device("warp")
