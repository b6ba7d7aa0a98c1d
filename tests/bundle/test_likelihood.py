"""The likelihoods against scipy, and their probabilities summed to one."""

import numpy as np
import pytest
from scipy import special, stats

from vaeserve.bundle.likelihood import LIKELIHOODS, Bernoulli, Gaussian, Logistic, _log_normal_tail

rng = np.random.default_rng(0)


def test_log_normal_tail_agrees_with_scipy_far_into_the_tails():
    z = np.concatenate([np.linspace(-12, 40, 20_001), [100.0, 1000.0, -30.0]])
    np.testing.assert_allclose(_log_normal_tail(z), special.log_ndtr(-z), rtol=1e-9, atol=1e-15)


def test_bernoulli_is_the_log_mass_of_the_pixels():
    images = rng.integers(0, 2, (5, 3, 3, 1), dtype=np.uint8) * np.uint8(255)
    pixels = rng.uniform(0.01, 0.99, images.shape).astype(np.float32)
    expected = stats.bernoulli.logpmf(images // 255, pixels.astype(np.float64)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(Bernoulli().log_prob(images, pixels, 2), expected, rtol=1e-10)


def test_bernoulli_is_finite_for_a_mean_of_exactly_zero():
    images = np.full((1, 3, 3, 1), 255, np.uint8)
    value = Bernoulli().log_prob(images, np.zeros(images.shape, np.float32), 2)
    assert np.isfinite(value).all()
    assert value[0] < -100


@pytest.mark.parametrize("kind", [Gaussian, Logistic])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("scale", [0.003, 0.07, 2.0])
def test_binned_masses_over_all_levels_sum_to_one(kind, levels, scale):
    every = np.rint(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8).reshape(-1, 1, 1, 1)
    for mean in (0.0, 0.3, 1.0):
        pixels = np.full(every.shape, mean)
        mass = np.exp(kind(scale=scale).log_prob(every, pixels, levels))
        assert mass.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("kind", "law"), [(Gaussian, stats.norm), (Logistic, stats.logistic)])
def test_binned_mass_is_the_difference_of_the_distribution_function(kind, law):
    images = rng.integers(1, 255, (4, 3, 3, 1), dtype=np.uint8)  # inner bins: both edges are finite
    pixels = np.clip(images / 255 + rng.normal(0, 0.1, images.shape), 0, 1)
    at = law(loc=pixels, scale=0.1)
    mass = at.cdf((images + 0.5) / 255) - at.cdf((images - 0.5) / 255)
    np.testing.assert_allclose(
        kind(scale=0.1).log_prob(images, pixels),
        np.log(mass).sum(axis=(1, 2, 3)),
        rtol=1e-9,
    )


def test_a_very_unlikely_pixel_has_a_finite_cost():
    images = np.full((1, 1, 1, 1), 255, np.uint8)
    value = Gaussian(scale=0.0025).log_prob(images, np.zeros((1, 1, 1, 1)))
    assert -85_000 < value[0] < -75_000  # (400 σ)² / 2


def test_long_batches_are_computed_in_pieces(monkeypatch):
    images = rng.integers(0, 256, (7, 3, 3, 1), dtype=np.uint8)
    pixels = rng.random(images.shape, np.float32)
    whole = Gaussian(scale=0.1).log_prob(images, pixels)
    monkeypatch.setattr("vaeserve.bundle.likelihood.PIECE", 20)  # two images
    np.testing.assert_array_equal(Gaussian(scale=0.1).log_prob(images, pixels), whole)
    assert Gaussian(scale=0.1).log_prob(images[:0], pixels[:0]).shape == (0,)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(scale=0.1), Logistic(scale=0.05)])
def test_samples_have_the_mean_and_variance_of_the_likelihood(likelihood, levels):
    """The moments of the grey levels under `log_prob`, which are E[x|z] where clipping is symmetric."""
    if likelihood.kind == "bernoulli":
        levels = 2
    grey = np.arange(levels) / (levels - 1)
    every = np.rint(grey * 255).astype(np.uint8).reshape(-1, 1, 1, 1)
    n = 4000
    for p in (0.1, 0.5):
        mass = np.exp(likelihood.log_prob(every, np.full(every.shape, p, np.float32), levels))
        mean = (mass * grey).sum()
        variance, fourth = ((mass * (grey - mean) ** power).sum() for power in (2, 4))
        pixels = np.full((n, 2, 2, 1), p, np.float32)
        x = likelihood.sample(pixels, levels, seed=3)
        assert (x.dtype, x.shape) == (np.uint8, pixels.shape)
        assert np.isin(x, every).all()
        assert (x / 255).mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / x.size))
        # The second term is the error of the mean, squared: of two levels at 0.5 it is all there is.
        error = 5 * np.sqrt(max(0, fourth - variance**2) / x.size) + 25 * variance / x.size
        assert (x / 255).var() == pytest.approx(variance, abs=error)
    if levels == 256 or likelihood.kind == "bernoulli":  # at 0.5 the ends clip next to nothing
        assert (x / 255).mean() == pytest.approx(likelihood.mean(pixels).mean(), abs=0.01)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(scale=0.1), Logistic(scale=0.1)])
def test_a_sampled_row_depends_on_its_seed_and_number_alone(likelihood):
    pixels = rng.random((6, 4, 4, 3), np.float32)
    whole = likelihood.sample(pixels, seed=5)
    np.testing.assert_array_equal(likelihood.sample(pixels[2:4], seed=5, rows=range(2, 4)), whole[2:4])
    assert (likelihood.sample(pixels, seed=6) != whole).any()


def test_every_likelihood_is_found_by_the_name_in_the_manifest():
    assert {"bernoulli": Bernoulli, "gaussian": Gaussian, "logistic": Logistic} == LIKELIHOODS


@pytest.mark.parametrize("kind", [Gaussian, Logistic])
def test_a_missing_scale_is_an_error(kind):
    for fields in ({}, {"scale": None}):
        with pytest.raises(ValueError, match=f"a {kind.__name__.lower()} likelihood needs a scale"):
            kind(**fields)
