"""Samples of a posterior and its divergence from N(0, I)."""

import numpy as np
import pytest

from vaeserve.bundle.noise import noise
from vaeserve.bundle.posterior import Posterior

rng = np.random.default_rng(0)


@pytest.fixture
def posterior():
    return Posterior(*rng.normal(size=(2, 6, 2, 3)).astype(np.float32))


def test_a_sample_is_mean_plus_deviation_times_noise(posterior):
    z = posterior.sample(7)
    assert (z.dtype, z.shape) == (np.float32, (6, 2, 3))
    expected = posterior.mean + np.exp(posterior.logvar / 2) * noise(7, range(6), (2, 3))
    np.testing.assert_array_equal(z, expected)
    np.testing.assert_array_equal(posterior.at(np.zeros((6, 2, 3), np.float32)), posterior.mean)


def test_a_row_does_not_depend_on_its_batch(posterior):
    whole = posterior.sample(3, range(10, 16))
    np.testing.assert_array_equal(posterior.take(slice(2, 4)).sample(3, range(12, 14)), whole[2:4])
    rows = np.array([5, 1, 1])
    np.testing.assert_array_equal(posterior.take(rows).sample(3, (10 + rows).tolist()), whole[rows])


def test_kl_is_that_of_torch(posterior):
    torch = pytest.importorskip("torch")
    normal = torch.distributions.Normal
    mean, logvar = map(torch.from_numpy, posterior)
    expected = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0))
    assert posterior.kl().dtype == np.float64
    np.testing.assert_allclose(posterior.kl(), expected.numpy(), atol=1e-5)
