"""Each likelihood against scipy, and against the numpy code that scores images in the service."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from training.model.likelihoods import LIKELIHOODS, log_logistic_mass
from vaeserve.bundle.likelihood import Logistic

BERNOULLI, GAUSSIAN = LIKELIHOODS["bernoulli"], LIKELIHOODS["gaussian"]


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_bernoulli_matches_scipy_summed_over_pixels():
    logits = 6 * uniform(3, 1, 4, 5) - 3
    pixels = (uniform(3, 1, 4, 5, seed=1) > 0.5).float()
    expected = scipy.stats.bernoulli.logpmf(pixels, torch.sigmoid(logits.double())).sum((1, 2, 3))
    assert BERNOULLI.log_prob(logits, pixels, None, None).tolist() == pytest.approx(expected, rel=1e-5)


def test_bernoulli_is_finite_for_confident_wrong_logits():
    logits = torch.full((1, 1, 1, 2), 1000.0)
    assert BERNOULLI.log_prob(logits, torch.zeros(1, 1, 1, 2), None, None).item() == -2000


def test_gaussian_matches_scipy_summed_over_pixels():
    mean, pixels = uniform(3, 3, 4, 5), uniform(3, 3, 4, 5, seed=1)
    expected = scipy.stats.norm(mean, 0.3).logpdf(pixels).sum((1, 2, 3))
    found = GAUSSIAN.log_prob(mean.logit(), pixels, torch.tensor(0.3), None)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_each_likelihood_takes_its_own_scale():
    learned, variance = torch.tensor(0.1), torch.tensor(0.25)
    assert GAUSSIAN.scale(None, lambda: variance).item() == 0.5
    assert LIKELIHOODS["logistic"].scale(learned, lambda: pytest.fail("not needed")) is learned
    assert BERNOULLI.scale(None, lambda: pytest.fail("not needed")) is None


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_bins_match_scipy_and_sum_to_one(levels):
    """Differences of the distribution function at the bins' edges; the end bins reach to infinity."""
    scale, mean = 0.07, 0.31
    grey = np.arange(levels) / (levels - 1)
    edges = np.concatenate([[-np.inf], (np.arange(levels - 1) + 0.5) / (levels - 1), [np.inf]])
    expected = np.diff(scipy.stats.logistic.cdf(edges, mean, scale))
    pixels = torch.tensor(grey, dtype=torch.float32).reshape(-1, 1, 1, 1)
    nats = log_logistic_mass(torch.full_like(pixels, mean), pixels, torch.tensor(scale), levels)
    assert torch.exp(nats.double()).sum().item() == pytest.approx(1, abs=1e-5)
    near = expected > 1e-6
    assert nats[near].tolist() == pytest.approx(np.log(expected[near]), rel=1e-4)


@pytest.mark.parametrize("scale", [0.001, 0.02, 0.5])
def test_logistic_matches_the_service_and_stays_finite_far_from_the_mean(scale):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    mean = rng.random((5, 6, 6, 3), dtype=np.float32)
    expected = Logistic(scale=scale).log_prob(images, mean)
    pixels = torch.from_numpy(images / np.float32(255))
    found = log_logistic_mass(torch.from_numpy(mean), pixels, torch.tensor(scale), 256)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_learned_logistic_scale_converges_to_that_of_the_noise():
    noise = scipy.stats.logistic(scale=0.05).rvs((1, 1, 100, 100), random_state=0)
    pixels = (torch.from_numpy(0.5 + noise).float() * 255).round() / 255
    log_scale = torch.tensor(-2.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_scale], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (-log_logistic_mass(torch.full_like(pixels, 0.5), pixels, log_scale.exp(), 256).mean()).backward()
        optimizer.step()
    assert log_scale.exp().item() == pytest.approx(0.05, rel=0.03)


def test_perfect_reconstructions_have_a_finite_density():
    from training.model import objective

    variance = objective.optimal_variance(torch.tensor(0.0), 64)
    assert variance.item() == pytest.approx(math.exp(-12))
    zeros = torch.zeros(1, 1, 8, 8)
    assert math.isfinite(GAUSSIAN.log_prob(zeros, zeros + 0.5, variance.sqrt(), None).item())
