"""The figures are means over images, of the right things, through the exported graphs."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from service.runtime.bundle import Draft, LikelihoodSpec
from service.runtime.engine import Engine
from service.runtime.prior import noise
from training import evaluate as module
from training.data import from_arrays
from training.evaluate import evaluate


@pytest.fixture(scope="module")
def evaluation(exported, digits):
    return evaluate(exported.engine, digits)


def test_elbo_is_the_sum_over_pixels_and_latents_averaged_over_images(exported, digits, evaluation):
    engine, images = exported.engine, digits.pixels[digits.split.test]
    mean, logvar = engine.encode(images)
    z = mean + np.exp(logvar / 2) * noise(0, range(len(images)), mean.shape[1:])
    pixels, sigma = engine.pixels(z).astype(float), engine.manifest.likelihood.scale
    level = np.rint(images / 255 * 16)
    upper = np.where(level == 16, np.inf, (level + 0.5) / 16)
    lower = np.where(level == 0, -np.inf, (level - 0.5) / 16)
    mass = stats.norm.cdf(upper, pixels, sigma) - stats.norm.cdf(lower, pixels, sigma)
    distortion = -np.log(mass).sum(axis=(1, 2, 3))
    rate = (0.5 * (mean.astype(float) ** 2 + np.exp(logvar.astype(float)) - 1 - logvar)).sum(axis=1)
    found = evaluation.metrics
    assert found["distortion"].value == pytest.approx(distortion.mean(), rel=1e-4)
    assert found["rate"].value == pytest.approx(rate.mean(), rel=1e-5)
    assert found["elbo"].value == pytest.approx(-(distortion + rate).mean(), rel=1e-4)
    assert found["elbo"].se == pytest.approx(
        (distortion + rate).std(ddof=1) / math.sqrt(len(images)), rel=1e-3
    )
    assert found["bits_per_dim"].value == pytest.approx(
        (distortion + rate).mean() / 64 / math.log(2), rel=1e-4
    )
    assert found["elbo"].n == len(images)


def test_mse_is_that_of_the_posterior_mean_s_reconstruction(exported, digits, evaluation):
    images = digits.pixels[digits.split.test]
    pixels = exported.engine.pixels(exported.engine.encode(images).mean)
    assert evaluation.metrics["mse"].value == pytest.approx(np.square(pixels - images / 255).mean(), rel=1e-6)


def test_the_chunk_size_changes_nothing(exported, digits, evaluation, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 13)
    again = evaluate(exported.engine, digits).metrics
    for name, metric in evaluation.metrics.items():
        assert again[name].value == pytest.approx(metric.value, rel=1e-5), name


def test_a_trained_model_embeds_better_than_chance_and_pca_is_beside_it(evaluation):
    metrics = evaluation.metrics
    assert {"linear_probe", "linear_probe_pca", "knn5", "knn5_pca", "mse_pca"} <= set(metrics)
    assert metrics["linear_probe"].value > 0.5
    assert metrics["knn5_pca"].value > 0.9  # 8 components: 0.965 on another split
    assert 0.02 < metrics["mse_pca"].value < 0.03  # 8 components: 0.0249 on another split


def test_probe_equals_scikit_learn_s_by_hand():
    rng = np.random.default_rng(0)
    labels = {part: rng.integers(0, 3, 90) for part in ("train", "validation", "test")}
    features = {part: rng.normal(0, 1, (90, 4)) + 2 * y[:, None] for part, y in labels.items()}
    mean, std = features["train"].mean(axis=0), features["train"].std(axis=0)
    scores = []
    for c in module.INVERSE_PENALTIES:
        probe = LogisticRegression(C=c, max_iter=500).fit((features["train"] - mean) / std, labels["train"])
        scores.append([probe.score((features[p] - mean) / std, labels[p]) for p in ("validation", "test")])
    best = max(scores, key=lambda pair: pair[0])
    assert module.linear_probe(features, labels) == pytest.approx(best[1])


def test_without_labels_there_are_no_probes(exported, digits):
    bare = from_arrays("bare", digits.pixels, levels=17)
    metrics = evaluate(exported.engine, bare).metrics
    assert "elbo" in metrics
    assert "linear_probe" not in metrics


def test_active_units_are_those_that_the_data_move():
    rng = np.random.default_rng(0)
    mean = np.c_[rng.normal(0, 1, 500), rng.normal(5, 0.01, 500), rng.normal(0, 0.3, 500)].astype(np.float32)
    assert module.active_units(mean) == 2


def test_a_bernoulli_model_of_grey_data_is_evaluated_on_one_binarised_test_set(exported, digits):
    manifest = exported.draft.manifest.model_copy(update={"likelihood": LikelihoodSpec(kind="bernoulli")})
    engine = Engine(Draft(exported.draft.folder, manifest).bundle())
    images = module.test_images(engine, digits, seed=0)
    grey = digits.pixels[digits.split.test]
    assert set(np.unique(images)) == {0, 255}
    assert (images[grey == 0] == 0).all()
    assert (images[grey == 255] == 255).all()
    assert np.abs(images.mean() - grey.mean()) < 2  # x ~ Bernoulli(pixel)
    np.testing.assert_array_equal(images, module.test_images(engine, digits, seed=0))
    assert (images != module.test_images(engine, digits, seed=1)).any()


def test_the_fitted_prior_explains_the_posterior_better_than_the_normal(exported, digits, evaluation):
    assert exported.engine.prior.mixture is not None
    hole = evaluation.metrics["hole"]
    assert hole.value > 0
    assert hole.n == len(digits.split.test)
