"""Noise is a promise: the same seed and row give the same numbers for ever."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from tests.bundles import make_draft
from vaeserve.bundle.files import BundleError, Draft
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import SEEDS, noise
from vaeserve.bundle.prior import Mixture, Prior, read_prior, write_prior


def test_noise_is_these_literal_numbers():
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


MIXTURE = Mixture(
    np.array([0.25, 0.75]),
    np.array([[-10, 0], [10, 0]], np.float32),
    np.stack([np.eye(2), np.array([[1, 0], [0.5, 0.1]])]).astype(np.float32),
)


def test_mixture_samples_are_these_literal_numbers():
    np.testing.assert_allclose(
        Prior((2,), MIXTURE).sample(seed=7, rows=range(3)),
        np.array([[9.852872, -0.023352746], [9.659888, -0.13339609], [8.854371, -0.48946074]], np.float32),
        rtol=1e-6,
    )


def test_mixture_rows_do_not_depend_on_neighbours_and_components_have_their_weights():
    prior = Prior((1, 2), MIXTURE)
    whole = prior.sample(seed=3, rows=range(4000))
    assert whole.shape == (4000, 1, 2)
    np.testing.assert_array_equal(whole[100:102], prior.sample(seed=3, rows=range(100, 102)))
    assert (whole[:, 0, 0] > 0).mean() == pytest.approx(0.75, abs=0.03)


def test_temperature_narrows_each_component_and_keeps_the_choice():
    prior = Prior((2,), MIXTURE)
    warm, cold = (prior.sample(seed=3, rows=range(500), temperature=t) for t in (1.0, 0.0))
    assert set(map(tuple, cold)) == {(-10.0, 0.0), (10.0, 0.0)}
    np.testing.assert_array_equal(np.sign(warm[:, 0]), np.sign(cold[:, 0]))
    np.testing.assert_array_equal(Prior((2,)).sample(seed=3, rows=range(5)), noise(3, range(5), (2,)))


def with_prior(tmp_path, kind="gmm", **arrays):
    draft = make_draft(tmp_path, latent=(2,))
    if arrays:
        np.savez(tmp_path / "prior.npz", **arrays)
    spec = PriorSpec(kind=kind, file="prior.npz" if arrays else None)
    return Draft(tmp_path, draft.manifest.model_copy(update={"prior": spec})).bundle()


def test_a_bundle_s_mixture_is_read(tmp_path):
    prior = read_prior(with_prior(tmp_path, **asdict(MIXTURE)))
    np.testing.assert_array_equal(
        prior.sample(seed=1, rows=range(9)), Prior((2,), MIXTURE).sample(seed=1, rows=range(9))
    )


def test_each_label_has_its_own_mixture_and_n_0_1_stays_at_hand(tmp_path):
    sevens = Mixture(np.ones(1), np.full((1, 2), 7, np.float32), np.eye(2, dtype=np.float32)[None] / 100)
    write_prior(tmp_path / "prior.npz", MIXTURE, {1: sevens})
    draft = make_draft(tmp_path, latent=(2,))
    asked = {"prior": PriorSpec(kind="gmm", file="prior.npz"), "labels": ("six", "seven", "eight")}
    prior = read_prior(Draft(tmp_path, draft.manifest.model_copy(update=asked)).bundle())
    assert (prior.kinds, list(prior.by_label)) == (("normal", "mixture"), [1])
    rows = {"seed": 3, "rows": range(50)}
    np.testing.assert_array_equal(prior.sample(**rows, kind="normal"), noise(3, range(50), (2,)))
    np.testing.assert_array_equal(prior.sample(**rows, kind="mixture"), Prior((2,), MIXTURE).sample(**rows))
    of_label = prior.sample(**rows, label=1)
    np.testing.assert_allclose(of_label, 7, atol=0.05)
    np.testing.assert_array_equal(of_label[4:9], prior.sample(seed=3, rows=range(4, 9), label=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": np.zeros((2, 3), np.float32)}, r"means must be finite, of shape \[2, 2\]"),
        ({"factors": np.full((2, 2, 2), np.nan)}, "factors must be finite"),
        ({"weights": np.array([0.5, 0.6])}, "do not sum to 1"),
        ({"weights": np.array([])}, "weights must be finite"),
    ],
)
def test_a_mixture_that_is_none_is_refused(tmp_path, changes, message):
    with pytest.raises(BundleError, match=message):
        read_prior(with_prior(tmp_path, **(asdict(MIXTURE) | changes)))


def test_a_mixture_without_a_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="names no file"):
        read_prior(with_prior(tmp_path))
