"""Figures of samples, against closed forms and sums written out; and what they say of a real model."""

from types import SimpleNamespace

import numpy as np
import pytest

from training.data.images import from_arrays
from training.evaluation import samples
from vaeserve.bundle.posterior import Posterior

RNG = np.random.default_rng(0)


def test_the_frechet_distance_of_moved_and_stretched_points_has_a_closed_form():
    points = RNG.normal(size=(500, 4)) * [1, 2, 3, 4]
    assert samples.frechet(points, points) == pytest.approx(0, abs=1e-9)
    assert samples.frechet(points, points + 3) == pytest.approx(4 * 9)
    variance = np.cov(points, rowvar=False)
    centred = points - points.mean(axis=0)
    assert samples.frechet(centred, 3 * centred) == pytest.approx(4 * np.trace(variance))


def test_the_kernel_distance_is_its_sum_and_does_not_grow_as_n_falls():
    x, y = RNG.normal(size=(2, 6, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum((k(x[i], x[j]) + k(y[i], y[j])) / 30 for i, j in pairs if i != j)
    expected -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    assert samples.mmd(x, y) == pytest.approx(expected)
    for n in (100, 3000):  # of the same distribution: 0 on average, however few
        metric = samples.kernel(RNG.normal(size=(n, 3)), RNG.normal(size=(n, 3)), seed=0)
        assert abs(metric.value) < (0.5 if n == 100 else 0.02)
    moved = samples.kernel(RNG.normal(size=(3000, 3)), RNG.normal(1, 1, (3000, 3)), seed=0)
    assert (moved.value > 1, moved.se < 0.3, moved.n) == (True, True, 3000)


def test_a_lost_mode_costs_recall_and_coverage_and_an_invented_one_precision_and_density():
    near, far = RNG.normal(size=(2, 400, 2))
    both = np.r_[near, far + 100]
    lost = np.r_[near, near + 0.01]
    alike = np.r_[RNG.normal(size=(400, 2)), RNG.normal(size=(400, 2)) + 100]
    found = samples.precision_recall(both, alike) | samples.density_coverage(both, alike)
    assert min(found["precision"], found["recall"], found["coverage"]) > 0.9
    assert found["density"] == pytest.approx(1, abs=0.1)
    found = samples.precision_recall(both, lost) | samples.density_coverage(both, lost)
    assert found["precision"] > 0.9
    assert found["recall"] <= 0.55
    assert found["coverage"] <= 0.5
    found = samples.precision_recall(near, both) | samples.density_coverage(near, both)
    assert found["precision"] == pytest.approx(0.5)
    assert found["recall"] == 1
    assert found["density"] < 0.7


def test_distances_to_neighbours_are_root_mean_squares_of_grey_on_0_1():
    pixels = np.zeros((400, 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(400) % 256
    pixels[:, 0, 1, 0] = np.arange(400) // 256
    images = from_arrays("ramp", pixels)
    train = images.pixels[images.split.train]
    np.testing.assert_allclose(samples.nearest_training(train, images), 0, atol=1e-6)
    white = np.full((1, 4, 4, 1), 255, np.uint8)
    expected = np.sqrt(np.square(1 - train / 255).mean(axis=(1, 2, 3))).min()
    assert samples.nearest_training(white, images)[0] == pytest.approx(expected, rel=1e-5)
    twins = samples.nearest_other(np.concatenate([train[:5], train[2:3], white]))
    np.testing.assert_array_equal(twins < 5e-4, [False, False, True, False, False, True, False])


def test_samples_of_a_real_model_are_compared_with_reconstructions_and_real_images(exported, digits):
    means = exported.engine.encode(digits.pixels[digits.split.test]).mean
    found = samples.sample_quality(exported.engine, digits, means, 0, lambda text: None)
    again = samples.sample_quality(exported.engine, digits, means, 0, lambda text: None)
    assert found == again
    assert found["classifier"].value > 0.9
    values = {key: metric.value for key, metric in found.items()}
    # The model has hardly learned anything, and the figures say so.
    assert values["frechet_real"] < values["frechet_reconstructions"]
    assert values["frechet_real"] < values["frechet"]
    assert values["coverage_real"] > 0.8 > values["coverage"]
    assert values["duplicates_real"] < 0.05
    assert {"kernel", "precision", "recall", "density", "nearest", "frechet_normal"} <= set(values)
    assert "nearest_restored" not in values


class Perfect:
    """An engine that restores every image exactly, and samples blank ones."""

    manifest = SimpleNamespace(likelihood=None)

    class prior:
        kinds = ("normal",)

        @staticmethod
        def sample(seed, rows):
            return np.zeros((len(rows), 64), np.float32)

    def encode(self, images):
        mean = images.reshape(len(images), -1).astype(np.float32)
        return Posterior(mean, mean)

    def decode(self, z):
        return z.reshape(-1, 8, 8, 1).astype(np.uint8)


def test_only_the_test_images_own_reconstructions_can_come_nearer_than_real_images(digits):
    """With a perfect decoder they are at distance 0, which a fresh sample never reaches; training
    images are restored as what they are, so theirs are as far as real images."""
    means = digits.pixels[digits.split.test].reshape(len(digits.split.test), -1).astype(np.float32)
    found = samples.sample_quality(Perfect(), digits, means, 0, lambda text: None)
    values = {key: metric.value for key, metric in found.items()}
    assert values["frechet_reconstructions"] == pytest.approx(0, abs=1e-6)
    assert values["frechet_real"] > 1
    for name in ("frechet", "kernel", "precision", "recall", "density", "coverage", "duplicates"):
        assert values[f"{name}_restored"] == values[f"{name}_real"], name


def test_without_labels_there_are_no_figures(exported, digits):
    bare = from_arrays("bare", digits.pixels)
    assert samples.sample_quality(exported.engine, bare, np.zeros((1, 8)), 0, print) == {}
