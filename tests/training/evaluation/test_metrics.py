"""Figures that are functions of arrays, against closed forms, scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from training.evaluation import metrics

RNG = np.random.default_rng(0)


def test_a_mean_carries_its_standard_error():
    values = RNG.normal(3, 2, 400)
    metric = metrics.mean_of(values, seed=5, k=7)
    assert (metric.n, metric.seed, metric.k) == (400, 5, 7)
    assert metric.value == pytest.approx(values.mean())
    assert metric.se == pytest.approx(stats.sem(values))
    assert metrics.mean_of(np.array([1.0])).se is None
    assert metrics.share_of(0.9, 1000).se == pytest.approx(np.sqrt(0.9 * 0.1 / 1000))


def test_psnr_is_that_of_each_image_and_ends_at_100_db():
    np.testing.assert_allclose(metrics.psnr(np.array([1.0, 0.1, 0.001, 0.0])), [0, 10, 30, 100])


@pytest.mark.parametrize("shape", [(3, 28, 31, 1), (2, 11, 11, 3), (2, 40, 16, 3)])
def test_ssim_is_that_of_wang_et_al(shape):
    """Written down again with scipy's own Gaussian filter, whose window is 11×11 when cut at 3.5 σ."""
    x = RNG.random(shape)
    y = np.clip(x + 0.2 * RNG.normal(size=shape), 0, 1)

    def blur(array):
        smooth = gaussian_filter(array, 1.5, truncate=3.5, axes=(1, 2))
        return smooth[:, 5 : shape[1] - 5, 5 : shape[2] - 5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    np.testing.assert_allclose(metrics.ssim(x, y), expected.mean(axis=(1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(metrics.ssim(x, x), 1)


def test_ssim_of_flat_and_of_small_images_has_a_closed_form():
    a, b = np.full((1, 20, 20, 1), 0.2), np.full((1, 20, 20, 1), 0.7)
    c1 = 0.01**2
    expected = (2 * 0.2 * 0.7 + c1) / (0.2**2 + 0.7**2 + c1)
    assert metrics.ssim(a, b)[0] == pytest.approx(expected)
    for side in (1, 2, 8):  # the window is 1, 1 and 7 wide
        assert metrics.ssim(a[:, :side, :side], b[:, :side, :side])[0] == pytest.approx(expected)


def test_active_units_are_those_that_the_data_move():
    mean = np.c_[RNG.normal(0, 1, 500), RNG.normal(5, 0.01, 500), RNG.normal(0, 0.3, 500)].astype(np.float32)
    assert metrics.active_units(mean) == 2


@pytest.fixture
def classes():
    labels = {part: RNG.integers(0, 3, 90) for part in ("train", "validation", "test")}
    return {part: RNG.normal(0, 1, (90, 4)) + y[:, None] for part, y in labels.items()}, labels


def test_the_probe_is_scikit_learn_s_with_the_penalty_that_is_best_on_validation(classes):
    features, labels = classes
    mean, std = features["train"].mean(axis=0), features["train"].std(axis=0)
    scores = []
    for c in metrics.INVERSE_PENALTIES:
        probe = LogisticRegression(C=c, tol=1e-3, max_iter=500)
        probe.fit((features["train"] - mean) / std, labels["train"])
        scores.append([probe.score((features[p] - mean) / std, labels[p]) for p in ("validation", "test")])
    best = max(scores, key=lambda pair: pair[0])
    assert metrics.linear_probe(features, labels) == pytest.approx(best[1])


def test_neighbours_are_scikit_learn_s(classes):
    features, labels = classes
    expected = KNeighborsClassifier(5).fit(features["train"], labels["train"])
    assert metrics.nearest_neighbours(features, labels) == expected.score(features["test"], labels["test"])
