"""What the tests of the service compare its answers with."""

import numpy as np
import pytest

from vaeserve.bundle.repository import open_engine


@pytest.fixture(scope="session")
def tiny(repository):
    """The engine of tiny@2, the default model of `http`."""
    return open_engine(repository / "tiny/2")


@pytest.fixture(scope="session")
def images():
    """Five images of noise for tiny, uint8 [5, 8, 8, 1]."""
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="session")
def colour(repository):
    """The engine of colour@1, 12×10 RGB with a local score."""
    return open_engine(repository / "colour/1")
