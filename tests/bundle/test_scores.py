"""Scores and the importance-weighted bound against closed forms."""

import numpy as np
import pytest
from scipy import stats

from vaeserve.bundle.noise import noise
from vaeserve.bundle.posterior import Posterior
from vaeserve.bundle.prior import log_standard_normal
from vaeserve.bundle.scores import ImportanceBound, Scores, score, squared_error

rng = np.random.default_rng(0)
X = rng.normal(size=20)  # one observation for each image, x = z₁ + ε, z ~ N(0, I₂), ε ~ N(0, 1)
EXACT = stats.norm(0, np.sqrt(2)).logpdf(X)


def log_p(image, z):
    return stats.norm(z[:, 0], 1).logpdf(X[image])


def posterior(widening=0.0):
    """p(z|x), or one with a wider logvar."""
    mean = np.stack([X / 2, np.zeros(20)], axis=1)
    logvar = np.tile([np.log(0.5), 0.0], (20, 1)) + widening
    return Posterior(mean.astype(np.float32), logvar.astype(np.float32))


def bound(q, k, size, log_prior=None, **rows):
    found = ImportanceBound(q, k, 0, **rows)
    for image, z in found.pieces(size):
        assert len(image) == len(z) <= size
        found.add(image, z, log_p(image, z), None if log_prior is None else log_prior(z))
    return found.value


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("size", [1, 8, 1000])
def test_with_the_true_posterior_the_bound_is_log_p_of_x(k, size):
    """Every weight is p(x) then, so the samples add no noise."""
    np.testing.assert_allclose(bound(posterior(), k, size), EXACT, atol=1e-5)


def test_with_another_posterior_the_bound_rises_to_log_p_of_x():
    one, ten, many = (bound(posterior(0.7), k, 500).mean() for k in (1, 10, 500))
    assert one < ten < many
    assert many == pytest.approx(EXACT.mean(), abs=0.02)


def test_the_density_of_a_given_prior_replaces_n_0_1():
    q = posterior(0.3)
    plain = bound(q, 5, 16)
    same = bound(q, 5, 16, log_prior=lambda z: log_standard_normal(z.astype(np.float64)))
    np.testing.assert_allclose(same, plain, rtol=1e-9)
    higher = bound(q, 5, 16, log_prior=lambda z: log_standard_normal(z.astype(np.float64)) + 3)
    np.testing.assert_allclose(higher, plain + 3, rtol=1e-9)


def test_sample_s_of_image_r_has_its_own_row_of_noise():
    q, k = posterior(0.3), 3
    z = np.concatenate([z for _, z in ImportanceBound(q, k, 9, first_row=100).pieces(7)])
    np.testing.assert_array_equal(z, q.take(np.arange(60) // k).at(noise(9, range(100, 160), (2,))))
    few, more = (
        np.concatenate([z for _, z in ImportanceBound(q, k, 9, stride=1000).pieces(64)]).reshape(20, k, 2)
        for k in (3, 8)
    )
    np.testing.assert_array_equal(more[:, :3], few)


def test_scores_are_the_terms_of_the_elbo(draft):
    manifest, q = draft.manifest, Posterior(*rng.normal(size=(2, 3, 4)).astype(np.float32))
    images, others = rng.integers(0, 256, (2, 3, 8, 8, 1), dtype=np.uint8)
    pixels, log_prior = rng.random((3, 8, 8, 1), np.float32), np.arange(3.0)
    found = score(manifest, images, q, pixels, others, log_prior)
    assert isinstance(found, Scores)
    np.testing.assert_allclose(found.distortion, -manifest.likelihood.log_prob(images, pixels, 256))
    np.testing.assert_allclose(found.rate, q.kl().sum(axis=1))
    np.testing.assert_allclose(found.elbo, -found.distortion - found.rate)
    assert found.log_prior is log_prior
    expected = np.square(images / 255 - others / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.error, expected, rtol=1e-5)
    np.testing.assert_array_equal(squared_error(images, images), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="tiny@1 has no likelihood"):
        score(manifest.model_copy(update={"likelihood": None}), images, q, pixels, others, log_prior)
