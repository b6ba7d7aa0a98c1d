"""The fitted prior: its density is a density, its samples follow it, and it closes the hole."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from training.data import images as data
from training.publishing.fit_priors import common_labels, fit_mixture
from vaeserve.bundle.prior import Mixture, Prior, log_standard_normal


def two_blobs(n, seed):
    rng = np.random.default_rng(seed)
    left = rng.multivariate_normal([-3, 0, 1], np.diag([0.1, 1.0, 0.5]), n // 4)
    right = rng.multivariate_normal([3, 0, -1], [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 0.2]], n - n // 4)
    return rng.permutation(np.r_[left, right])


@pytest.fixture(scope="module")
def fitted():
    return fit_mixture(two_blobs(4000, 0), two_blobs(1000, 1), most=10, seed=0)


def test_the_size_is_chosen_on_validation_and_the_score_is_its_log_density(fitted):
    mixture, score = fitted
    assert 2 <= len(mixture.weights) <= 10
    assert score == pytest.approx(mixture.log_density(two_blobs(1000, 1)).mean(), abs=1e-3)
    assert score > log_standard_normal(two_blobs(1000, 1)).mean() + 2


def test_log_density_is_that_of_scipy():
    mixture = Mixture(
        np.array([0.3, 0.7]),
        np.array([[0, 1], [2, -1]], np.float32),
        np.array([[[1, 0], [0.5, 2]], [[0.3, 0], [0, 0.4]]], np.float32),
    )
    z = np.random.default_rng(0).normal(0, 2, (50, 2))
    parts = [
        np.log(w) + stats.multivariate_normal(m, f @ f.T).logpdf(z)
        for w, m, f in zip(mixture.weights, mixture.means, mixture.factors.astype(float), strict=True)
    ]
    np.testing.assert_allclose(mixture.log_density(z), logsumexp(parts, axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        log_standard_normal(z), stats.multivariate_normal(np.zeros(2)).logpdf(z), rtol=1e-10
    )


def test_samples_follow_the_fitted_density(fitted):
    mixture, _ = fitted
    z = Prior((3,), mixture).sample(seed=5, rows=range(8000)).astype(float)
    data = two_blobs(8000, 2)
    for dimension in range(3):
        assert stats.ks_2samp(z[:, dimension], data[:, dimension]).statistic < 0.04
    np.testing.assert_allclose(np.cov(z.T), np.cov(data.T), atol=0.3)


def test_too_few_samples_are_a_clear_error():
    with pytest.raises(ValueError, match="3 samples are too few for a density of 2 dimensions"):
        fit_mixture(np.zeros((3, 2)), np.zeros((3, 2)), most=10, seed=0)


def test_labels_of_few_images_and_sets_of_many_labels_get_no_mixtures():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    labels = np.zeros(400, np.int64)
    labels[:3] = 1  # three images of label 1, none of label 2
    images = data.from_arrays("few", pixels, labels, ("many", "few", "none"))
    rows = (images.split.train, images.split.validation)
    assert common_labels(images, *rows) == [0]
    unnamed = data.from_arrays("unnamed", pixels)
    assert common_labels(unnamed, *rows) == []
    names = tuple(f"name {number}" for number in range(101))
    assert common_labels(data.from_arrays("most", pixels, labels, names), *rows) == []
