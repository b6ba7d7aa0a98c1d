"""The likelihoods against scipy, and against the law that probabilities sum to one."""

import numpy as np
import pytest
from scipy import special, stats

from vaeserve.bundle.likelihood import _log_normal_tail, log_prob
from vaeserve.bundle.manifest import ImageSpec, LikelihoodSpec

rng = np.random.default_rng(0)


def spec(levels: int = 256, side: int = 3) -> ImageSpec:
    return ImageSpec(height=side, width=side, channels=1, levels=levels)


def test_log_normal_tail_agrees_with_scipy_far_into_the_tails():
    z = np.concatenate([np.linspace(-12, 40, 20_001), [100.0, 1000.0, -30.0]])
    np.testing.assert_allclose(_log_normal_tail(z), special.log_ndtr(-z), rtol=1e-9, atol=1e-15)


def test_bernoulli_is_the_log_mass_of_the_pixels():
    images = rng.integers(0, 2, (5, 3, 3, 1), dtype=np.uint8) * np.uint8(255)
    pixels = rng.uniform(0.01, 0.99, images.shape).astype(np.float32)
    expected = stats.bernoulli.logpmf(images // 255, pixels.astype(np.float64)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(
        log_prob(LikelihoodSpec(kind="bernoulli"), spec(2), images, pixels), expected, rtol=1e-10
    )


def test_bernoulli_with_a_pixel_at_exactly_zero_stays_finite():
    images = np.full((1, 3, 3, 1), 255, np.uint8)
    value = log_prob(LikelihoodSpec(kind="bernoulli"), spec(2), images, np.zeros(images.shape, np.float32))
    assert np.isfinite(value).all()
    assert value[0] < -100


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("scale", [0.003, 0.07, 2.0])
def test_binned_masses_over_all_levels_sum_to_one(kind, levels, scale):
    every = np.rint(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8).reshape(-1, 1, 1, 1)
    for mean in (0.0, 0.3, 1.0):
        pixels = np.full(every.shape, mean)
        mass = np.exp(log_prob(LikelihoodSpec(kind=kind, scale=scale), spec(levels, 1), every, pixels))
        assert mass.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("kind", "law"), [("gaussian", stats.norm), ("logistic", stats.logistic)])
def test_binned_mass_is_the_difference_of_the_distribution_function(kind, law):
    images = rng.integers(1, 255, (4, 3, 3, 1), dtype=np.uint8)  # inner bins: both edges are finite
    pixels = np.clip(images / 255 + rng.normal(0, 0.1, images.shape), 0, 1)
    at = law(loc=pixels, scale=0.1)
    mass = at.cdf((images + 0.5) / 255) - at.cdf((images - 0.5) / 255)
    np.testing.assert_allclose(
        log_prob(LikelihoodSpec(kind=kind, scale=0.1), spec(), images, pixels),
        np.log(mass).sum(axis=(1, 2, 3)),
        rtol=1e-9,
    )


def test_a_hopeless_pixel_costs_much_and_not_infinity():
    images = np.full((1, 1, 1, 1), 255, np.uint8)
    value = log_prob(
        LikelihoodSpec(kind="gaussian", scale=0.0025), spec(256, 1), images, np.zeros((1, 1, 1, 1))
    )
    assert -85_000 < value[0] < -75_000  # (400 σ)² / 2


def test_a_gaussian_without_a_scale_is_a_clear_error():
    with pytest.raises(ValueError, match="needs a scale"):
        log_prob(
            LikelihoodSpec(kind="gaussian"), spec(), np.zeros((1, 3, 3, 1), np.uint8), np.zeros((1, 3, 3, 1))
        )
