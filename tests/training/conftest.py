"""One short real run on digits, shared by the tests of everything that comes after training."""

from types import SimpleNamespace

import pytest

from service.runtime.engine import Engine
from training import data, trainer
from training.config import TrainConfig
from training.export import export


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory):
    """The result of ten epochs with a narrow network: enough to be better than no model."""
    return trainer.fit(TrainConfig(epochs=10, width=8, latent=8), digits, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def exported(run, digits, tmp_path_factory):
    draft = export(run.checkpoint, digits, tmp_path_factory.mktemp("draft"))
    return SimpleNamespace(draft=draft, engine=Engine(draft.bundle()))
