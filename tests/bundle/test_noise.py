"""Noise is stable: the same seed and row always give the same numbers."""

import numpy as np
import pytest
from scipy import stats

from vaeserve.bundle.noise import SEEDS, noise, noise_and_uniform, truncated


def test_noise_is_literal_numbers():
    np.testing.assert_array_equal(
        noise(7, range(2), (3,)),
        np.array([[-0.4586592, 0.25178358, -1.2938583], [-0.49719477, -0.05353057, -0.6941012]], np.float32),
    )
    np.testing.assert_array_equal(
        noise(2**53 - 1, range(10**9, 10**9 + 1), (2,)), np.array([[0.68002194, -1.5899951]], np.float32)
    )


def test_each_row_is_the_raw_philox_stream_of_its_key():
    raw = np.random.Philox(key=np.array([11, 5], np.uint64)).random_raw(4)
    u = ((raw >> np.uint64(11)).astype(float) + 1) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u[:2])), 2 * np.pi * u[2:]
    expected = [radius[0] * np.cos(angle[0]), radius[0] * np.sin(angle[0]), radius[1] * np.cos(angle[1])]
    np.testing.assert_allclose(noise(11, range(5, 6), (3,))[0], expected, rtol=1e-7)


def test_a_row_does_not_depend_on_its_neighbours():
    whole = noise(3, range(20), (2, 5))
    assert whole.shape == (20, 2, 5)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[13:15], noise(3, range(13, 15), (2, 5)))
    assert noise(3, range(4, 4), (2, 5)).shape == (0, 2, 5)


def test_rows_and_seeds_are_different_and_normal():
    values = noise(0, range(4000), (8,))
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(values.T) - np.eye(8)).max() < 0.08
    assert len(np.unique(values)) > 0.999 * values.size
    assert np.abs(np.corrcoef(values.ravel(), noise(1, range(4000), (8,)).ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("seed", [-1, SEEDS])
def test_seeds_outside_the_range_are_refused(seed):
    with pytest.raises(ValueError, match=r"2\^53"):
        noise(seed, range(1), (2,))


def test_truncated_normals_have_the_distribution_of_rejection_sampling():
    normals = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    cut = truncated(normals, 1.0)
    kept = normals[np.abs(normals) <= 1]  # rejection
    np.testing.assert_allclose(
        np.quantile(cut, [0.1, 0.3, 0.5, 0.9]), np.quantile(kept, [0.1, 0.3, 0.5, 0.9]), atol=0.03
    )


def test_the_extra_uniform_leaves_the_normals_as_they_are():
    normals, uniform = noise_and_uniform(5, range(2000), (3,))
    np.testing.assert_array_equal(normals, noise(5, range(2000), (3,)))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(uniform, normals.T)[0, 1:]).max() < 0.08


def test_rows_may_have_gaps():
    np.testing.assert_array_equal(noise(3, [7, 2, 7], (4,)), noise(3, range(8), (4,))[[7, 2, 7]])
