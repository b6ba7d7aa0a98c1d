"""One short real run on digits, shared by the tests of everything that comes after training."""

from types import SimpleNamespace

import pytest

from tests.training.runs import TINY, Watch
from training.config import TrainConfig
from training.data.load import load
from training.fit import trainer
from training.publishing.export import export
from vaeserve.bundle.engine import Engine


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory):
    """The result of ten epochs with a narrow network: enough to be better than no model."""
    return trainer.fit(
        TrainConfig(epochs=10, batch=128, width=8, latent=8, precision="float32"),
        digits,
        tmp_path_factory.mktemp("run"),
    )


@pytest.fixture(scope="session")
def exported(run, digits, tmp_path_factory):
    draft = export(run.checkpoint, digits, tmp_path_factory.mktemp("draft"))
    return SimpleNamespace(draft=draft, engine=Engine(draft.bundle()))


@pytest.fixture(scope="session")
def uninterrupted(digits, tmp_path_factory):
    """A run of 44 steps that nothing disturbed."""
    return trainer.fit(TINY, digits, tmp_path_factory.mktemp("uninterrupted"), progress=Watch())
