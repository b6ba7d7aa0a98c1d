"""Samples and densities of priors, and bundles whose prior cannot be read."""

from dataclasses import asdict

import numpy as np
import pytest

from tests.bundles import make_draft
from vaeserve.bundle.files import BundleError, Draft
from vaeserve.bundle.manifest import PriorSpec
from vaeserve.bundle.noise import noise
from vaeserve.bundle.prior import Mixture, Prior, read_prior, write_prior

MIXTURE = Mixture(
    np.array([0.25, 0.75]),
    np.array([[-10, 0], [10, 0]], np.float32),
    np.stack([np.eye(2), np.array([[1, 0], [0.5, 0.1]])]).astype(np.float32),
)


def test_mixture_samples_are_literal_numbers():
    np.testing.assert_allclose(
        Prior((2,), MIXTURE).sample(seed=7, rows=range(3)),
        np.array([[9.852872, -0.023352746], [9.659888, -0.13339609], [8.854371, -0.48946074]], np.float32),
        rtol=1e-6,
    )


def test_mixture_rows_are_independent_and_components_have_their_weights():
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


def test_the_mixture_of_a_bundle_is_read(tmp_path):
    prior = read_prior(with_prior(tmp_path, **asdict(MIXTURE)))
    np.testing.assert_array_equal(
        prior.sample(seed=1, rows=range(9)), Prior((2,), MIXTURE).sample(seed=1, rows=range(9))
    )


def test_each_label_has_its_own_mixture_and_n_0_1_stays_available(tmp_path):
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
def test_a_bad_mixture_is_refused(tmp_path, changes, message):
    with pytest.raises(BundleError, match=message):
        read_prior(with_prior(tmp_path, **(asdict(MIXTURE) | changes)))


def test_a_mixture_without_a_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="names no file"):
        read_prior(with_prior(tmp_path))


def test_the_log_density_of_a_mixture_is_the_weighted_sum_of_its_components():
    rng = np.random.default_rng(0)
    factors = np.tril(rng.standard_normal((2, 3, 3))).astype(np.float32)
    factors[:, range(3), range(3)] = np.abs(factors[:, range(3), range(3)]) + 0.5
    means = rng.standard_normal((2, 3)).astype(np.float32)
    mixture = Mixture(np.array([0.25, 0.75]), means, factors)
    z = rng.standard_normal((4, 3)).astype(np.float32)
    expected = np.zeros(4)
    for weight, mean, factor in zip(mixture.weights, means, factors, strict=True):
        covariance = (factor @ factor.T).astype(float)
        away = z - mean
        exponent = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        expected += weight * np.exp(-0.5 * exponent) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    np.testing.assert_allclose(np.exp(Prior((3,), mixture).log_density(z)), expected, rtol=1e-5)
